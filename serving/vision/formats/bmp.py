"""BMP: `BM`, file size, pixel offset, then a header (OS/2's of 12 bytes or a later one), then rows."""

from __future__ import annotations

import struct

from serving.errors import PictureUndecodable
from serving.vision.formats import StoredDimensions

SIGNATURE = b"BM"

_OS2_HEADER_BYTES = 12
_HEADER_BYTES = frozenset({12, 40, 52, 56, 64, 108, 124})
_RGB, _BITFIELDS = 0, 3


def is_bmp(data: bytes) -> bool:
    """Two letters are a weak signature: text may begin with them, but not with a known header length."""
    return data[:2] == SIGNATURE and int.from_bytes(data[14:18], "little") in _HEADER_BYTES


def read_dimensions(data: bytes) -> StoredDimensions:
    if _is_os2(data):
        width, height = struct.unpack_from("<HH", data, 18)
    else:
        width, height = struct.unpack_from("<ii", data, 18)
    return StoredDimensions(width, abs(height))  # a negative height means rows from the top down


def complete_picture(data: bytes) -> memoryview:
    if len(data) < _needed_bytes(data):
        raise PictureUndecodable("The BMP is cut off.")
    return memoryview(data)


def _needed_bytes(data: bytes) -> int:
    """Writers disagree on the stated file size, so it decides only where the rows are compressed."""
    stated_bytes, _, pixel_offset = struct.unpack_from("<III", data, 2)
    dimensions = read_dimensions(data)
    bits_per_pixel = struct.unpack_from("<H", data, 24 if _is_os2(data) else 28)[0]
    compression = _RGB if _is_os2(data) else struct.unpack_from("<I", data, 30)[0]
    if compression not in {_RGB, _BITFIELDS}:
        return int(stated_bytes)
    row_bytes = (dimensions.width * bits_per_pixel + 31) // 32 * 4
    return int(pixel_offset + row_bytes * dimensions.height)


def _is_os2(data: bytes) -> bool:
    return int(struct.unpack_from("<I", data, 14)[0]) == _OS2_HEADER_BYTES
