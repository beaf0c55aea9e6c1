"""EXIF orientation: how a camera was held, told beside the pixels.

OpenCV turns JPEG and PNG by itself in every version, WebP only from 5.0 on; for WebP it is done here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
"""(H, W, 3) uint8."""

_ORIENTATION_TAG = 0x0112
_ENTRY_BYTES = 12
_BYTE_ORDERS = {b"II*\x00": "<", b"MM\x00*": ">"}


def read_orientation(tiff: bytes) -> int:
    """The orientation, 1 to 8, from the TIFF structure of EXIF; 1, upright, where none can be read."""
    byte_order = _BYTE_ORDERS.get(tiff[:4])
    if byte_order is None:
        return 1
    try:
        return _orientation_of_first_directory(tiff, byte_order)
    except struct.error:  # a damaged tag does not spoil the picture that it describes
        return 1


def _orientation_of_first_directory(tiff: bytes, byte_order: str) -> int:
    (directory,) = struct.unpack_from(byte_order + "I", tiff, 4)
    (entries,) = struct.unpack_from(byte_order + "H", tiff, directory)
    for index in range(entries):
        entry = directory + 2 + index * _ENTRY_BYTES
        (tag,) = struct.unpack_from(byte_order + "H", tiff, entry)
        if tag == _ORIENTATION_TAG:
            (value,) = struct.unpack_from(byte_order + "H", tiff, entry + 8)
            return value if 1 <= value <= 8 else 1
    return 1


def upright(picture: Picture, orientation: int) -> Picture:
    """Turn and mirror so that it looks as it was taken; sides swap for orientations 5 to 8."""
    turn = _TURNS.get(orientation)
    return picture if turn is None else np.ascontiguousarray(turn(picture))


_TURNS: dict[int, Callable[[Picture], Picture]] = {
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: stored.transpose(1, 0, 2)[:, ::-1],
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: stored.transpose(1, 0, 2)[::-1],
}
