"""Pictures into a classifier's input, as torchvision's `Resize(side)` and `CenterCrop(side)` do it.

The pixels are Pillow's, whose filter widens as the picture shrinks: one pass along the rows and one along
the columns, each rounded to 8 bits. A pass takes some lines at a time, which bounds what Pillow's copies
cost, and keeps of each what the crop keeps. (Pillow's own `box` is no way to leave the rest out: it is held
in 32-bit floats, which moved pixels by one level in 43 of 60 pictures.)

A picture many times as long as it is wide would become a strip of millions of pixels, nearly all of them cut
away. Of such a side only what is kept is worked out, here, with Pillow's own fixed-point weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from serving.domain.geometry import CenterCropGeometry, Size
from serving.vision.letterbox import ColorSpace

Picture = NDArray[np.uint8]
"""(H, W, 3) uint8."""

LONG_SIDES = 4
"""A resized side is long from this many times the crop's on."""

_LINES_AT_A_TIME = 256
_WEIGHT_BITS = 22
"""Pillow's weights are whole numbers of 2 ** -22."""


def center_crop_batch(
    pictures_rgb: Sequence[Picture], *, out: NDArray[np.uint8], color_space: ColorSpace
) -> None:
    """Write B pictures, each (H, W, 3) uint8 RGB of any size, into `out`, (B, side, side, 3) uint8."""
    for picture_rgb, slot_hwc in zip(pictures_rgb, out, strict=True):
        center_crop_into(picture_rgb, slot_hwc, color_space=color_space)


def center_crop_into(picture_rgb: Picture, slot_hwc: Picture, *, color_space: ColorSpace) -> None:
    """Write an (H, W, 3) uint8 RGB picture into a (side, side, 3) uint8 slot, which is overwritten whole."""
    side = len(slot_hwc)
    height, width = picture_rgb.shape[:2]
    crop = CenterCropGeometry.fit(Size(width, height), side)
    rows = _Axis(0, height, crop.resized.height, crop.top, side)
    columns = _Axis(1, width, crop.resized.width, crop.left, side)
    pixels = picture_rgb[rows.needed, columns.needed]
    for axis in _in_pillows_order(rows, columns):
        pixels = _resample(pixels, axis)
    slot_hwc[:] = pixels if color_space == "RGB" else pixels[..., ::-1]


@dataclass(frozen=True, slots=True)
class _Axis:
    """A side of the picture, `length` pixels, resized to `resized`, of which `kept` from `begin` on stay.

    dimension: of the array; 0 counts rows, 1 columns.
    """

    dimension: int
    length: int
    resized: int
    begin: int
    kept: int

    @property
    def is_long(self) -> bool:
        return self.resized >= LONG_SIDES * self.kept

    @property
    def scale(self) -> float:
        return self.length / self.resized

    @property
    def reach(self) -> float:
        """How far from its centre a resized pixel looks, in pixels of the picture."""
        return max(self.scale, 1.0)

    @property
    def needed(self) -> slice:
        """What the kept pixels are made of, for a long side; of the others Pillow wants the whole."""
        if not self.is_long:
            return slice(0, self.length)
        first = int(self.begin * self.scale - self.reach)
        last = math.ceil((self.begin + self.kept) * self.scale + self.reach)
        return slice(max(first, 0), min(last, self.length))


def _in_pillows_order(rows: _Axis, columns: _Axis) -> tuple[_Axis, _Axis]:
    """Columns of the picture become fewer first, unless rows become fewer by more than twice as many.

    As in Pillow 13. Before that, columns always came first; a pixel of a tall picture differs by one level.
    """
    if rows.length - rows.resized > 2 * max(0, columns.length - columns.resized):
        return rows, columns
    return columns, rows


def _resample(pixels: Picture, axis: _Axis) -> Picture:
    """(h, w, 3) to the kept pixels along the axis; the other dimension stays as it is."""
    if axis.is_long:
        return _weighted(pixels, axis)
    return np.concatenate(
        [_by_pillow(lines, axis) for lines in _some_at_a_time(pixels, axis)], axis=1 - axis.dimension
    )


def _some_at_a_time(pixels: Picture, axis: _Axis) -> Iterator[Picture]:
    """Lines along the axis do not know of each other."""
    for begin in range(0, pixels.shape[1 - axis.dimension], _LINES_AT_A_TIME):
        some = slice(begin, begin + _LINES_AT_A_TIME)
        yield pixels[some] if axis.dimension == 1 else pixels[:, some]


def _by_pillow(lines: Picture, axis: _Axis) -> Picture:
    height, width = lines.shape[:2]
    kept = slice(axis.begin, axis.begin + axis.kept)
    picture = Image.fromarray(np.ascontiguousarray(lines))  # it makes its own copy of strips very slowly
    if axis.dimension == 1:
        return np.asarray(picture.resize((axis.resized, height), Image.Resampling.BILINEAR))[:, kept]
    return np.asarray(picture.resize((width, axis.resized), Image.Resampling.BILINEAR))[kept]


def _weighted(pixels: Picture, axis: _Axis) -> Picture:
    """The same arithmetic in the same order as Pillow's, for the kept pixels only."""
    lines = np.moveaxis(pixels, axis.dimension, 0)
    index, weight = _weights(axis)
    # Beyond the picture's end the weight is 0, so that any other pixel may stand there.
    index = np.clip(index - axis.needed.start, 0, len(lines) - 1)
    total = np.full((axis.kept, *lines.shape[1:]), 1 << (_WEIGHT_BITS - 1), np.int32)
    for tap_index, tap_weight in zip(index.T, weight.T, strict=True):
        total += lines[tap_index] * tap_weight[:, None, None]
    return np.moveaxis((total >> _WEIGHT_BITS).astype(np.uint8), 0, axis.dimension)


def _weights(axis: _Axis) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Of each kept pixel, (kept, taps): which pixels of the picture it is made of, and how much of each."""
    center = (np.arange(axis.begin, axis.begin + axis.kept) + 0.5) * axis.scale
    first = np.maximum((center - axis.reach + 0.5).astype(np.int64), 0)
    last = np.minimum((center + axis.reach + 0.5).astype(np.int64), axis.length)
    index = first[:, None] + np.arange(2 * math.ceil(axis.reach) + 1)
    distance = np.abs((index - center[:, None] + 0.5) * (1.0 / axis.reach))
    weight = np.where(index < last[:, None], np.maximum(1.0 - distance, 0.0), 0.0)
    weight /= weight.cumsum(axis=1)[:, -1:]  # `sum` would add up in another order
    return index, (weight * (1 << _WEIGHT_BITS) + 0.5).astype(np.int32)
