"""PNG: an 8-byte signature, then chunks `length type payload crc`, from IHDR to IEND."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from serving.errors import PictureUndecodable
from serving.vision.formats import StoredDimensions

SIGNATURE = b"\x89PNG\r\n\x1a\n"

MAX_CHUNKS = 10_000
"""libpng cuts its data into chunks of 8 KiB, 4,096 in 32 MiB."""

MAX_CHUNKS_BEFORE_DATA = 1_000

_ANIMATION_CONTROL = b"acTL"
# All that decides the pixels. Anything else is left out of what OpenCV gets: its APNG reader (4.11) writes
# out of bounds on a frame larger than the picture, and compressed text and colour profiles are inflated for
# nothing.
_CHUNKS_OF_A_PICTURE = frozenset({b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND"})


def read_dimensions(data: bytes) -> StoredDimensions:
    if data[8:16] != b"\x00\x00\x00\rIHDR":
        raise PictureUndecodable("The PNG does not begin with its header.")
    width, height = struct.unpack_from(">II", data, 16)
    return StoredDimensions(width, height, animated=_is_animated(data))


def complete_picture(data: bytes) -> bytes:
    view = memoryview(data)
    kept: list[bytes | memoryview] = [SIGNATURE]
    for chunk_type, start, end in _chunks(data, at_most=MAX_CHUNKS):
        if chunk_type in _CHUNKS_OF_A_PICTURE:
            kept.append(view[start:end])
        if chunk_type == b"IEND" and end <= len(data):
            return b"".join(kept)
    raise PictureUndecodable("The PNG is cut off.")


def _is_animated(data: bytes) -> bool:
    for chunk_type, _, _ in _chunks(data, at_most=MAX_CHUNKS_BEFORE_DATA):
        if chunk_type in {_ANIMATION_CONTROL, b"IDAT"}:
            return chunk_type == _ANIMATION_CONTROL
    return False


def _chunks(data: bytes, *, at_most: int) -> Iterator[tuple[bytes, int, int]]:
    """(type, start, end) of each chunk; the last may end behind the data."""
    start = len(SIGNATURE)
    for _ in range(at_most):
        if start + 8 > len(data):
            break
        length, chunk_type = struct.unpack_from(">I4s", data, start)
        end = start + 12 + length
        yield chunk_type, start, end
        start = end
    if start + 8 <= len(data):
        raise PictureUndecodable(f"The PNG has more than {at_most} chunks.")
