from __future__ import annotations

import numpy as np
import orjson
import pytest

from serving.domain.contract import ModelContract
from serving.vision.center_crop import center_crop_batch
from serving.vision.letterbox import ColorSpace, letterbox_batch
from serving.vision.preprocess import preprocess
from tests.support.contracts import CLASSIFIER, SHAPES, changed

PICTURES = [np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)]


def preprocessed(document: bytes) -> list[object]:
    out = np.empty((1, 320, 320, 3), np.uint8)
    preprocess(ModelContract.parse(document).preprocessing, PICTURES, out=out)
    return list(out.tolist())


@pytest.mark.parametrize("color_space", ["RGB", "BGR"])
def test_pictures_go_in_as_the_contract_says(color_space: ColorSpace) -> None:
    expected = np.empty((1, 320, 320, 3), np.uint8)

    center_crop_batch(PICTURES, out=expected, color_space=color_space)
    assert (
        preprocessed(changed("preprocessing.format.color_space", color_space, CLASSIFIER))
        == expected.tolist()
    )

    letterbox_batch(PICTURES, out=expected, fill_value=17, color_space=color_space)
    filled = changed("preprocessing.resize.fill_value", 17)
    assert preprocessed(changed("preprocessing.format.color_space", color_space, filled)) == expected.tolist()


def test_sides_that_differ_keep_their_order() -> None:
    """Width comes first in the contract, height in an array."""
    metadata = orjson.loads(SHAPES)
    metadata["preprocessing"]["resize"]["size"] = [96, 32]
    metadata["input_spec"][0]["shape"] = [-1, 32, 96, 3]
    contract = ModelContract.parse(orjson.dumps(metadata))

    assert (contract.input_size.width, contract.input_size.height) == (96, 32)
