"""Pictures into the model's input and boxes back, as Ultralytics' LetterBox and scale_boxes do it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from serving.domain.geometry import LetterboxGeometry, Size

ColorSpace = Literal["RGB", "BGR"]


def letterbox_batch(
    pictures_rgb: Sequence[NDArray[np.uint8]],
    *,
    out: NDArray[np.uint8],
    fill_value: int,
    color_space: ColorSpace,
) -> list[LetterboxGeometry]:
    """Write B pictures, each (H, W, 3) uint8 RGB of any size, into `out`, (B, height, width, 3) uint8."""
    return [
        letterbox_into(picture_rgb, slot_hwc, fill_value=fill_value, color_space=color_space)
        for picture_rgb, slot_hwc in zip(pictures_rgb, out, strict=True)
    ]


def letterbox_into(
    picture_rgb: NDArray[np.uint8], slot_hwc: NDArray[np.uint8], *, fill_value: int, color_space: ColorSpace
) -> LetterboxGeometry:
    """Write an (H, W, 3) uint8 RGB picture into an (h, w, 3) uint8 slot, which is overwritten whole.

    The slot may be a view of a batch or of shared memory as long as its pixels are contiguous.
    """
    (height, width), (slot_height, slot_width) = picture_rgb.shape[:2], slot_hwc.shape[:2]
    geometry = LetterboxGeometry.fit(Size(width, height), Size(slot_width, slot_height))
    inner = slot_hwc[_inner_rows(geometry), _inner_columns(geometry)]
    _fill_border(slot_hwc, geometry, fill_value)
    if geometry.inner == geometry.picture:
        inner[:] = picture_rgb
    else:
        inner_size = (geometry.inner.width, geometry.inner.height)
        cv2.resize(picture_rgb, inner_size, dst=inner, interpolation=cv2.INTER_LINEAR)
    if color_space == "BGR":
        cv2.cvtColor(inner, cv2.COLOR_RGB2BGR, dst=inner)
    return geometry


def undo_letterbox(boxes_xyxy: NDArray[np.float32], geometry: LetterboxGeometry) -> NDArray[np.float32]:
    """(N, 4) float32 boxes from input pixels to picture pixels, clipped to the picture; N may be 0."""
    pad = np.array([geometry.pad_left, geometry.pad_top] * 2, np.float32)
    scale = np.array([geometry.scale_x, geometry.scale_y] * 2, np.float32)
    limit = np.array([geometry.picture.width, geometry.picture.height] * 2, np.float32)
    boxes = (boxes_xyxy - pad) / scale
    np.maximum(boxes, 0, out=boxes)
    np.minimum(boxes, limit, out=boxes)
    return boxes


def _inner_rows(geometry: LetterboxGeometry) -> slice:
    return slice(geometry.pad_top, geometry.pad_top + geometry.inner.height)


def _inner_columns(geometry: LetterboxGeometry) -> slice:
    return slice(geometry.pad_left, geometry.pad_left + geometry.inner.width)


def _fill_border(slot_hwc: NDArray[np.uint8], geometry: LetterboxGeometry, fill_value: int) -> None:
    rows, columns = _inner_rows(geometry), _inner_columns(geometry)
    slot_hwc[: rows.start] = fill_value
    slot_hwc[rows.stop :] = fill_value
    slot_hwc[rows, : columns.start] = fill_value
    slot_hwc[rows, columns.stop :] = fill_value
