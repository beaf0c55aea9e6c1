"""Tiny ONNX models, each for one behaviour of the server that runs them, in the folders that Triton wants."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.parser

from serving.domain.contract import ModelContract
from tests.support.contracts import contract

BUSY_LOOPS_PER_LEVEL = 4000

ADD_ONE = """
    <ir_version: 8, opset_import: ["" : 17]>
    add_one (float[N, K] x) => (float[N, K] y) <float one = {1.0}> { y = Add(x, one) }
"""
SUM_AND_DIFFERENCE = """
    <ir_version: 8, opset_import: ["" : 17]>
    sum_and_difference (float[N, 2] a, float[N, 2] b) => (float[N, 2] total, float[N, 2] difference) {
        total = Add(a, b)
        difference = Sub(a, b)
    }
"""
LOOK_UP = """
    <ir_version: 8, opset_import: ["" : 17]>
    look_up (int64[N, 1] index) => (float[N, 1] value) <float[4] table = {0.0, 10.0, 20.0, 30.0}> {
        value = Gather(table, index)
    }
"""  # fails for an index that the table does not have
MEAN_OF_EACH = f"""
    <ir_version: 8, opset_import: ["" : 17]>
    probe (uint8[N, 4, 4, 3] images) => (float[N, 5, 1] predictions)
    <int64[1] start = {{0}}, int64[1] one = {{1}}, int64[3] five = {{1, 5, 1}}, float[1] zero = {{0.0}},
     int64 factor = {{{BUSY_LOOPS_PER_LEVEL}}}, bool go_on = {{1}}, int64[3] column = {{-1, 1, 1}},
     int64[1] everything = {{-1}}> {{
        pixels = Cast <to = 1> (images)
        mean = ReduceMean <axes = [1, 2, 3], keepdims = 0> (pixels)
        flat = Reshape(images, everything)
        first = Slice(flat, start, one)
        level = Cast <to = 7> (first)
        trips_of_one = Mul(level, factor)
        trips = Squeeze(trips_of_one)
        nothing = Loop (trips, go_on, zero) <body = step (int64 i, bool c, float[1] v) => (bool d, float[1] w)
            {{ d = Identity(c) w = Neg(v) }}>
        answer = Add(mean, nothing)
        standing = Reshape(answer, column)
        predictions = Tile(standing, five)
    }}
"""  # the mean of each picture, five times; takes longer the larger the very first value of the batch


def write_model(path: Path, text: str) -> None:
    model = onnx.parser.parse_model(text)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())


def write_entry(repository: Path, name: str, text: str, config: str, *, filename: str = "model.onnx") -> None:
    """One model of a Triton repository, served by the `onnxruntime` backend."""
    write_model(repository / name / "1" / filename, text)
    (repository / name / "config.pbtxt").write_text(f'backend: "onnxruntime"\n{config}')


def probe_contract(name: str = "probe") -> ModelContract:
    """The contract that `MEAN_OF_EACH` keeps: 4 x 4 pictures in, (batch, 5, 1) out."""
    return contract(name, side=4, anchors=1, classes=["thing"])
