"""JPEG (ITU T.81): `FF D8`, segments `FF marker length payload`, scans of entropy-coded data, `FF D9`."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

import numpy as np

from serving.errors import PictureUndecodable
from serving.vision.formats import StoredDimensions

SIGNATURE = b"\xff\xd8\xff"

MAX_SCANS = 64
"""Encoders write about ten. Each scan of a progressive picture visits every pixel, so thousands of tiny scans
would make a small file cost minutes."""

MAX_SEGMENTS = 2_000
"""A few dozen are usual. One holds up to 64 KiB, so that even 32 MiB of metadata take only 512."""

MAX_GARBAGE_BYTES = 64 * 1024
"""Of a whole file, outside its scans: what libjpeg would skip between two segments."""

SCAN_BYTES_AT_A_TIME = 64 * 1024
"""Few enough to stay in the cache."""

_SOI, _EOI, _SOS, _TEM = 0xD8, 0xD9, 0xDA, 0x01
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# As libjpeg looks for the next marker: past garbage, fill bytes, stuffed zeros and restart markers.
_NEXT_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")


def read_dimensions(data: bytes) -> StoredDimensions:
    for marker, end in _markers(data):
        if marker in _START_OF_FRAME:
            height, width = struct.unpack_from(">HH", data, end + 3)
            return StoredDimensions(width, height)
        if marker == _SOS:
            break
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
    position, may_skip = 2, MAX_GARBAGE_BYTES
    for _ in range(MAX_SEGMENTS):
        found = _NEXT_MARKER.search(data, position, position + may_skip + 2)
        if found is None:
            break
        may_skip -= found.start() - position
        marker, end = data[found.start(1)], found.end()
        if marker == _SOI:
            raise PictureUndecodable("The JPEG holds the start of another one.")
        yield marker, end
        if marker == _EOI:
            return
        has_payload = marker != _TEM
        position = end + struct.unpack_from(">H", data, end)[0] if has_payload else end
        if marker == _SOS:
            position = _end_of_scan(data, position)
    if position + may_skip + 2 < len(data):
        raise PictureUndecodable("The JPEG has too many segments, or too much between them.")


def _end_of_scan(data: bytes, begin: int) -> int:
    """The position of the next marker, or the end of the data where there is none.

    The work does not depend on the bytes: a search that stops at every FF would take 25 times as long over a
    file of nothing else, and keep the GIL all that time.
    """
    codes = np.frombuffer(data, np.uint8)
    for position in range(begin, len(data) - 1, SCAN_BYTES_AT_A_TIME):
        window = codes[position : position + SCAN_BYTES_AT_A_TIME + 1]
        follower = window[1:]
        # The same as _NEXT_MARKER: FF, and then neither 00 nor FF (adding 1 wraps around) nor D0 to D7.
        is_marker = (window[:-1] == 0xFF) & (follower + np.uint8(1) > 1) & (follower & 0xF8 != 0xD0)
        first = int(is_marker.argmax())
        if is_marker[first]:
            return position + first
    return len(data)
