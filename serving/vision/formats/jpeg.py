"""JPEG (ITU T.81): `FF D8`, segments `FF marker length payload`, scans of entropy-coded data, `FF D9`."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from serving.errors import PictureUndecodable
from serving.vision.formats import StoredDimensions

SIGNATURE = b"\xff\xd8\xff"

MAX_SCANS = 64
"""Encoders write about ten. Each scan of a progressive picture visits every pixel, so thousands of tiny scans
would make a small file cost minutes."""

_SOI, _EOI, _SOS, _TEM = 0xD8, 0xD9, 0xDA, 0x01
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# As libjpeg looks for the next marker: past garbage, fill bytes, stuffed zeros and restart markers.
_NEXT_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")


def read_dimensions(data: bytes) -> StoredDimensions:
    for marker, end in _markers(data):
        if marker in _START_OF_FRAME:
            height, width = struct.unpack_from(">HH", data, end + 3)
            return StoredDimensions(width, height)
    raise PictureUndecodable("The JPEG ends before it says how large it is.")


def complete_picture(data: bytes) -> memoryview:
    """Up to the end-of-image marker that follows the scans; an embedded thumbnail's lies inside a segment."""
    scans = 0
    for marker, end in _markers(data):
        scans += marker == _SOS
        if scans > MAX_SCANS:
            raise PictureUndecodable(f"The JPEG has more than {MAX_SCANS} scans.")
        if marker == _EOI and scans:
            return memoryview(data)[:end]
    raise PictureUndecodable("The JPEG is cut off.")


def _markers(data: bytes) -> Iterator[tuple[int, int]]:
    """Each marker after the first with the position behind it, stopping after an end of image."""
    position = 2
    while found := _NEXT_MARKER.search(data, position):
        marker, end = data[found.start(1)], found.end()
        if marker == _SOI:
            raise PictureUndecodable("The JPEG holds the start of another one.")
        yield marker, end
        if marker == _EOI:
            return
        has_payload = marker != _TEM
        position = end + struct.unpack_from(">H", data, end)[0] if has_payload else end
