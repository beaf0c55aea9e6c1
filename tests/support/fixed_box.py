"""The cheapest detector there is, for tests whose subject is everything but the model.

32 x 32 pictures in, (batch, 5, 1) out: one box of 16 x 16 in the middle, whatever the picture shows.
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from tests.support import onnx_models
from tests.support.contracts import metadata

NAME = "fixed_box"
SIDE = 32
BOX_AND_CONFIDENCE = (16.0, 16.0, 16.0, 16.0, 0.75)
GRAPH = f"""
    <ir_version: 8, opset_import: ["" : 17]>
    fixed_box (uint8[N, {SIDE}, {SIDE}, 3] images) => (float[N, 5, 1] predictions)
    <int64[3] start = {{0, 0, 0}}, int64[3] end = {{1, 1, 1}}, int64[3] axes = {{1, 2, 3}},
     float[1] zero = {{0.0}}, float[1, 5, 1] box = {{{", ".join(map(str, BOX_AND_CONFIDENCE))}}},
     int64[3] column = {{-1, 1, 1}}> {{
        first = Slice(images, start, end, axes)
        number = Cast <to = 1> (first)
        standing = Reshape(number, column)
        nothing = Mul(standing, zero)
        predictions = Add(nothing, box)
    }}
"""
CONFIG = f"""
    max_batch_size: 16
    input [{{ name: "images" data_type: TYPE_UINT8 dims: [{SIDE}, {SIDE}, 3] }}]
    output [{{ name: "predictions" data_type: TYPE_FP32 dims: [5, 1] }}]
    instance_group [{{ count: 1 kind: KIND_CPU }}]
    dynamic_batching {{
        priority_levels: 3
        default_priority_level: 3
        default_queue_policy {{
            timeout_action: REJECT allow_timeout_override: true
            default_timeout_microseconds: 30000000 max_queue_size: 256 }} }}
    parameters {{ key: "intra_op_thread_count" value {{ string_value: "1" }} }}
    parameters {{ key: "inter_op_thread_count" value {{ string_value: "1" }} }}
"""


def write_repository(repository: Path) -> None:
    """A model repository, as the gateway and Triton read it, with this model alone."""
    onnx_models.write_entry(repository, NAME, GRAPH, CONFIG)
    described = metadata(NAME, side=SIDE, anchors=1, classes=["box"])
    (repository / NAME / "metadata.json").write_text(json.dumps(described))


def picture() -> bytes:
    return cv2.imencode(".jpg", np.full((SIDE, SIDE, 3), 114, np.uint8))[1].tobytes()
