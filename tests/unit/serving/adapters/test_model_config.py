"""What of `config.pbtxt` has to agree with the contract before a model is served."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from serving.adapters.model_config import read_max_batch_size
from serving.domain.contract import ModelContract
from serving.errors import OperatorError
from tests.support.contracts import contract, metadata

SHAPES = Path(__file__).parents[4] / "model_repo" / "shapes"
CONTRACT = contract("cats", side=64, anchors=3, classes=["cat"])
CONFIG = """
max_batch_size: 8
input [{ name: "images" data_type: TYPE_UINT8 dims: [64, 64, 3] }]
output [{ name: "predictions" data_type: TYPE_FP32 dims: [5, 3] }]
"""
ONE_AT_A_TIME = CONFIG.replace("size: 8", "size: 0").replace("dims: [", "dims: [1, ")


def one_at_a_time() -> ModelContract:
    raw = metadata("cats", side=64, anchors=3, classes=["cat"])
    raw["input_spec"][0]["shape"][0] = raw["output_spec"][0]["shape"][0] = 1
    return ModelContract.parse(orjson.dumps(raw))


def test_the_sample_takes_sixteen() -> None:
    sample = ModelContract.parse((SHAPES / "metadata.json").read_bytes())

    assert read_max_batch_size((SHAPES / "config.pbtxt").read_bytes(), sample) == 16


def test_a_graph_of_one_picture_takes_one() -> None:
    assert read_max_batch_size(ONE_AT_A_TIME.encode(), one_at_a_time()) == 1


@pytest.mark.parametrize("text", ["max_batch_size: x", "surprise: 1", "{", "\xff"])
def test_what_is_no_configuration_is_refused(text: str) -> None:
    with pytest.raises(OperatorError, match=r"config\.pbtxt cannot be read"):
        read_max_batch_size(text.encode("latin-1"), CONTRACT)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("", "input"),
        (CONFIG.replace("images", "pictures"), "input"),
        (CONFIG.replace("UINT8", "FP32"), "input"),
        (CONFIG.replace("64, 64", "32, 64"), "input"),
        (CONFIG.replace("predictions", "boxes"), "output"),
        (CONFIG.replace("FP32", "FP16"), "output"),
        (CONFIG.replace("[5, 3]", "[6, 3]"), "output"),
        (CONFIG.replace("TYPE_UINT8", "99"), "input"),  # a number that has no name
        (CONFIG + 'output [{ name: "more" data_type: TYPE_FP32 dims: [1] }]', "output"),
        (CONFIG.replace("size: 8", "size: 0"), "input"),
        (CONFIG.replace("size: 8", "size: 0").replace("dims: [", "dims: [-1, "), "max_batch_size"),
    ],
)
def test_other_tensors_than_the_contracts_are_refused(config: str, says: str) -> None:
    with pytest.raises(OperatorError, match=rf"config\.pbtxt.*{says}"):
        read_max_batch_size(config.encode(), CONTRACT)
