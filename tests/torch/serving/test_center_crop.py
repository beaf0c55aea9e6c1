"""The crop against torchvision's own, which lives in the export environment only."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from torchvision import transforms

from export_pipeline import reference
from serving.vision.center_crop import center_crop_into

SIZES_WH = [
    (1, 1),
    (223, 224),
    (224, 224),
    (225, 224),
    (224, 225),
    (227, 224),
    (224, 500),
    (640, 480),
    (480, 640),
    (641, 479),
    (1170, 2532),
    (1920, 1080),
    (40, 30),
    (3, 200),
    (200, 3),
    (300, 600),
    (300, 601),
    (1200, 290),
    (290, 1200),
]


def by_torchvision(picture: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    crop = transforms.Compose([transforms.Resize(side), transforms.CenterCrop(side)])
    return np.asarray(crop(Image.fromarray(picture)))


@pytest.mark.parametrize("side", [32, 64, 224])
@pytest.mark.parametrize(("width", "height"), SIZES_WH)
def test_gateway_and_oracle_crop_as_torchvision_does(width: int, height: int, side: int) -> None:
    picture = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    expected = by_torchvision(picture, side)
    slot = np.empty((side, side, 3), np.uint8)

    center_crop_into(picture, slot, color_space="RGB")

    np.testing.assert_array_equal(slot, expected)
    np.testing.assert_array_equal(reference.center_crop(picture, side), expected)
