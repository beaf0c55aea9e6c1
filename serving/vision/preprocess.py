"""A batch of pictures into the model's input, by whichever way its contract names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from serving.domain.metadata import Preprocessing
from serving.vision.center_crop import center_crop_batch
from serving.vision.letterbox import letterbox_batch


def preprocess(
    preprocessing: Preprocessing, pictures_rgb: Sequence[NDArray[np.uint8]], *, out: NDArray[np.uint8]
) -> None:
    """Write B pictures, each (H, W, 3) uint8 RGB of any size, into `out`, (B, height, width, 3) uint8."""
    resize, color_space = preprocessing.resize, preprocessing.format.color_space
    if resize.method == "center_crop":
        center_crop_batch(pictures_rgb, out=out, color_space=color_space)
    else:
        letterbox_batch(pictures_rgb, out=out, fill_value=resize.fill_value, color_space=color_space)
