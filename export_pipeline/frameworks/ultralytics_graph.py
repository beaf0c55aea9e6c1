"""From an Ultralytics network to the graph that is exported, and what its inputs and outputs mean."""

from __future__ import annotations

from typing import Any, Final

import torch
import ultralytics

from export_pipeline.errors import BadInput
from export_pipeline.facts import CheckpointFacts, Head, Normalize, Resize, SizeWh, Tensor
from export_pipeline.frameworks import Graph
from export_pipeline.request import ExportConfig

TRACED_BATCH: Final = 2
"""One would let tracing take the batch for a constant."""

_EXTRA: Final[dict[str, tuple[str, str]]] = {
    "segmentation": ("mask_coefficients", "then {} mask coefficients"),
    "pose": ("keypoints", "then {} numbers: x, y in input pixels and visibility 0-1 of each keypoint"),
    "obb": ("angle", "then an angle in radians"),
}


class Servable(torch.nn.Module):  # type: ignore[misc]  # torch lives in the export environment only
    """The network, with the pixels' normalisation in front where they come as bytes."""

    def __init__(self, network: torch.nn.Module, *, takes_pixels: bool) -> None:
        super().__init__()
        self.network = network
        self.takes_pixels = takes_pixels

    def forward(self, images: torch.Tensor) -> Any:
        """uint8 RGB [batch, height, width, 3], or float32 [batch, 3, height, width] in 0..1."""
        if self.takes_pixels:
            images = images.permute(0, 3, 1, 2).float() / 255
        return self.network(images)


def build_graph(
    network: Any, facts: CheckpointFacts, config: ExportConfig, head: Head, size_wh: SizeWh
) -> Graph:
    """`network` is changed: fused, and left with one head. Raises BadInput where its shapes do not fit."""
    _set_head(network, head, config.max_detections)
    inputs = (_input(config, size_wh, facts.task_type),)
    module = Servable(network, takes_pixels=config.embed_preprocessing).eval()
    shapes = _output_shapes(module, inputs[0])
    outputs = _outputs(facts, head, shapes, dynamic=config.dynamic_axes)
    _require_class_count(facts, head, size_wh, network, shapes[0])
    classifies = facts.task_type == "classification"
    return Graph(
        module=module,
        head=head,
        class_count=len(facts.class_names),
        resize=Resize(
            method="center_crop" if classifies else "letterbox",
            size=size_wh,
            stride=facts.stride,
            antialias=classifies,
        ),
        normalize=Normalize(),
        inputs=inputs,
        outputs=outputs,
        made_with={"ultralytics": ultralytics.__version__, "torch": torch.__version__.partition("+")[0]},
    )


def _set_head(network: Any, head: Head, max_detections: int) -> None:
    if head != "classification":
        network.end2end = "end_to_end" in head
        network.set_head_attr(
            max_det=max_detections, agnostic_nms=False, dynamic=False, xyxy=False, shape=None
        )
    network.fuse(verbose=False)
    network.model[-1].export = True
    network.model[-1].format = "onnx"
    for parameter in network.parameters():
        parameter.requires_grad = False


def _input(config: ExportConfig, size_wh: SizeWh, task_type: str) -> Tensor:
    width, height = size_wh
    batch = -1 if config.dynamic_axes else 1
    placed = "Centre crops of" if task_type == "classification" else "Letterboxed"
    if config.embed_preprocessing:
        return Tensor(
            name="images",
            shape=(batch, height, width, 3),
            dtype="uint8",
            layout="NHWC",
            description=f"{placed} RGB pictures, 0-255.",
        )
    return Tensor(
        name="images",
        shape=(batch, 3, height, width),
        dtype="float32",
        layout="NCHW",
        description=f"{placed} RGB pictures, 0-1.",
    )


def _output_shapes(module: Servable, images: Tensor) -> list[tuple[int, ...]]:
    """Of one run, after which the head holds the anchors of this size: they are traced as constants.

    Raises BadInput for a network whose layers do not fit each other.
    """
    dtype = torch.uint8 if images.dtype == "uint8" else torch.float32
    try:
        with torch.inference_mode():
            answer = module(torch.zeros(TRACED_BATCH, *images.shape[1:], dtype=dtype))
    except Exception as exc:  # torch and Ultralytics say it in many ways
        what = str(exc).partition("\n")[0]
        raise BadInput(f"The checkpoint's network does not run: {type(exc).__name__}: {what}") from exc
    return [tuple(output.shape) for output in (answer if isinstance(answer, tuple) else (answer,))]


def _require_class_count(
    facts: CheckpointFacts, head: Head, size_wh: SizeWh, network: Any, shape: tuple[int, ...]
) -> None:
    """Raises BadInput where the network does not answer as many classes, or anchors, as it says."""
    classes = len(facts.class_names)
    fits_exactly = facts.task_type == "detection"
    if head == "classification":
        fits = shape[1:] == (classes,)
    elif "end_to_end" in head:
        fits = shape[2] == 6 if fits_exactly else shape[2] > 6
    else:
        strides = [int(stride) for stride in network.model[-1].stride]
        anchors = sum((size_wh[0] // stride) * (size_wh[1] // stride) for stride in strides)
        enough = shape[1] == 4 + classes if fits_exactly else shape[1] > 4 + classes
        fits = enough and shape[2] == anchors
    if not fits:
        raise BadInput(
            f"The checkpoint names {classes} classes; its network's answer of shape {shape[1:]} is of others."
        )


def _outputs(
    facts: CheckpointFacts, head: Head, shapes: list[tuple[int, ...]], *, dynamic: bool
) -> tuple[Tensor, ...]:
    batch = -1 if dynamic else 1
    first, *more = [(batch, *shape[1:]) for shape in shapes]
    outputs = [_predictions(facts, head, first)]
    outputs += [
        Tensor(
            name="prototypes",
            shape=shape,
            dtype="float32",
            layout="NCHW",
            description="Mask prototypes: a mask is their sum, weighted by a prediction's mask coefficients.",
        )
        for shape in more
    ]
    return tuple(outputs)


def _predictions(facts: CheckpointFacts, head: Head, shape: tuple[int, ...]) -> Tensor:
    classes = len(facts.class_names)
    part, extra_text = _EXTRA.get(facts.task_type, ("", ""))
    if head == "classification":
        layout, axis, fixed = "NC", 1, {"scores": (0, classes)}
        description = "One score 0-1 per class; together 1."
    elif "end_to_end" in head:
        layout, axis, fixed = "NRF", 2, {"boxes": (0, 4), "scores": (4, 5), "classes": (5, 6)}
        box = "cx, cy, w, h" if facts.task_type == "obb" else "x_min, y_min, x_max, y_max"
        description = f"Rows by confidence: {box} in input pixels, confidence 0-1, class"
    else:
        layout, axis, fixed = "NCA", 1, {"boxes": (0, 4), "scores": (4, 4 + classes)}
        description = "For each anchor: cx, cy, w, h in input pixels, then one score 0-1 per class"
    end = max(end for _, end in fixed.values())
    if shape[axis] > end:
        fixed[part] = (end, shape[axis])
        description = f"{description}, {extra_text.format(shape[axis] - end)}"
    return Tensor(
        name="predictions",
        shape=shape,
        dtype="float32",
        layout=layout,
        description=description if description.endswith(".") else f"{description}.",
        parts=fixed,
        parts_axis=axis,
    )
