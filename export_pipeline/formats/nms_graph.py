"""Suppression inside the graph: from a raw detection head's output to rows that are final.

Of each anchor only its best class counts, as in Ultralytics' predict and in the gateway. ONNX's own
NonMaxSuppression then works class by class and picture by picture; what it keeps is written back into a field
of zeros, one score an anchor, so that everything after it is one batch again: no loop over pictures, and none
can reach another's rows. Of equal scores the anchor that comes first wins, here and in the oracle.
"""

from __future__ import annotations

import onnx
import onnx.parser

from export_pipeline.errors import Unsupported
from export_pipeline.facts import Tensor
from export_pipeline.request import ExportConfig

LEAST_OPSET = 12
"""Since then GatherND knows batches."""

_GRAPH = """
suppression (float[batch, {channels}, {anchors}] nms_raw) => (float[batch, {rows}, 6] {output})
<
  int64[1] nms_0 = {{0}}, int64[1] nms_1 = {{1}}, int64[1] nms_2 = {{2}}, int64[1] nms_4 = {{4}},
  int64[1] nms_channels = {{{channels}}}, int64[1] nms_rows = {{{rows}}}, int64[3] nms_column = {{0, -1, 1}},
  int64[2] nms_flat = {{0, -1}}, int64[1, {classes}, 1] nms_class_ids = {{{class_ids}}},
  int64 nms_most = {{{rows}}}, float nms_iou = {{{iou}}}, float nms_confidence = {{{confidence}}},
  float nms_half = {{0.5}}, float nms_zero = {{0}}
>
{{
  nms_centre = Slice (nms_raw, nms_0, nms_2, nms_1)
  nms_size = Slice (nms_raw, nms_2, nms_4, nms_1)
  nms_half_size = Mul (nms_size, nms_half)
  nms_low = Sub (nms_centre, nms_half_size)
  nms_high = Add (nms_centre, nms_half_size)
  nms_corners = Concat <axis = 1> (nms_low, nms_high)
  nms_xyxy = Transpose <perm = [0, 2, 1]> (nms_corners)

  nms_scores = Slice (nms_raw, nms_4, nms_channels, nms_1)
  nms_best_class = ArgMax <axis = 1, keepdims = 1> (nms_scores)
  nms_is_best = Equal (nms_best_class, nms_class_ids)
  nms_best_scores = Where (nms_is_best, nms_scores, nms_zero)
  nms_kept = NonMaxSuppression (nms_xyxy, nms_best_scores, nms_most, nms_iou, nms_confidence)

  nms_shape = Shape (nms_scores)
  nms_nothing = ConstantOfShape (nms_shape)
  nms_kept_scores = GatherND (nms_scores, nms_kept)
  nms_field = ScatterND (nms_nothing, nms_kept, nms_kept_scores)
  nms_by_anchor = {reduce_max}
  nms_top_scores, nms_top = TopK <axis = 1> (nms_by_anchor, nms_rows)

  nms_top_index = Reshape (nms_top, nms_column)
  nms_top_xyxy = GatherND <batch_dims = 1> (nms_xyxy, nms_top_index)
  nms_class_flat = Reshape (nms_best_class, nms_flat)
  nms_top_class = GatherND <batch_dims = 1> (nms_class_flat, nms_top_index)
  nms_top_class_float = Cast <to = 1> (nms_top_class)
  nms_class_column = Reshape (nms_top_class_float, nms_column)
  nms_score_column = Reshape (nms_top_scores, nms_column)
  nms_all_rows = Concat <axis = 2> (nms_top_xyxy, nms_score_column, nms_class_column)
  nms_is_row = Greater (nms_score_column, nms_zero)
  {output} = Where (nms_is_row, nms_all_rows, nms_zero)
}}
"""


def embed_nms(model: onnx.ModelProto, raw: Tensor, class_count: int, config: ExportConfig) -> Tensor:
    """Put suppression behind the model's one output, `raw`, in place; returns the output it has then.

    (N, 4 + C, A) becomes (N, R, 6) with R = min(max_detections, A): x_min, y_min, x_max, y_max in input
    pixels, confidence, class; most confident first, the rows after the last all 0. Raises Unsupported below
    opset 12.
    """
    if config.opset_version < LEAST_OPSET:
        raise Unsupported(
            f"embed_nms needs opset_version {LEAST_OPSET} or newer, not {config.opset_version}."
        )
    _, channels, anchors = raw.shape
    rows = min(config.max_detections, anchors)
    text = _GRAPH.format(
        channels=channels,
        anchors=anchors,
        rows=rows,
        classes=class_count,
        class_ids=", ".join(map(str, range(class_count))),
        iou=f"{config.iou_threshold:.9g}",
        confidence=f"{config.confidence_threshold:.9g}",
        reduce_max=_reduce_max("nms_field", config.opset_version),
        output=raw.name,
    )
    _append(model, onnx.parser.parse_graph(text), raw.name)
    return Tensor(
        name=raw.name,
        shape=(raw.shape[0], rows, 6),
        dtype="float32",
        layout="NRF",
        description=(
            "Rows by confidence: x_min, y_min, x_max, y_max in input pixels, confidence 0-1, class; "
            "rows after the last are 0."
        ),
        parts={"boxes": (0, 4), "scores": (4, 5), "classes": (5, 6)},
        parts_axis=2,
    )


def _reduce_max(name: str, opset_version: int) -> str:
    """Over the classes. Opset 18 turned the axes into an input."""
    if opset_version >= 18:
        return f"ReduceMax <keepdims = 0> ({name}, nms_1)"
    return f"ReduceMax <axes = [1], keepdims = 0> ({name})"


def _append(model: onnx.ModelProto, suppression: onnx.GraphProto, output: str) -> None:
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = ["nms_raw" if name == output else name for name in names]
    model.graph.node.extend(suppression.node)
    model.graph.initializer.extend(suppression.initializer)
    del model.graph.output[:]
    model.graph.output.extend(suppression.output)
