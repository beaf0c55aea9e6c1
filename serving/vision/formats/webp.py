"""WebP: `RIFF size WEBP`, then chunks `type size payload`; first VP8 (lossy), VP8L or VP8X (extended)."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from serving.errors import PictureUndecodable
from serving.vision.formats import StoredDimensions

MAX_CHUNKS = 1_000
"""Half a dozen are usual, as an animation is refused."""

_ANIMATION_FLAG = 0x02
_FIRST_CHUNK = 12
_EXIF_PREFIX = b"Exif\x00\x00"


def is_webp(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def read_dimensions(data: bytes) -> StoredDimensions:
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
        return StoredDimensions(width, height, animated=bool(data[20] & _ANIMATION_FLAG))
    if kind == b"VP8L" and data[20] == 0x2F:
        bits = struct.unpack_from("<I", data, 21)[0]
        return StoredDimensions((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return StoredDimensions(width & 0x3FFF, height & 0x3FFF)
    raise PictureUndecodable("The WebP does not begin with a picture.")


def complete_picture(data: bytes) -> memoryview:
    length = 8 + struct.unpack_from("<I", data, 4)[0]
    if length > len(data):
        raise PictureUndecodable("The WebP is cut off.")
    return memoryview(data)[:length]


def exif(picture: bytes | memoryview) -> bytes:
    """The TIFF structure that holds the EXIF tags of a complete picture; empty where there is none."""
    for kind, start, end in _chunks(picture):
        if kind == b"EXIF":
            return bytes(picture[start:end]).removeprefix(_EXIF_PREFIX)
    return b""


def _chunks(picture: bytes | memoryview) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, end) of each payload; the last may end behind the data."""
    start = _FIRST_CHUNK
    for _ in range(MAX_CHUNKS):
        if start + 8 > len(picture):
            break
        kind, size = struct.unpack_from("<4sI", picture, start)
        yield kind, start + 8, start + 8 + size
        start += 8 + size + size % 2
    if start + 8 <= len(picture):
        raise PictureUndecodable(f"The WebP has more than {MAX_CHUNKS} chunks.")
