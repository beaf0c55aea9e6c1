"""However a file is made, looking through it takes a bounded number of steps."""

from __future__ import annotations

import struct
import sys
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import PictureUndecodable
from serving.vision.decode import decode_rgb
from serving.vision.formats import jpeg, png, webp
from serving.vision.header import read_header
from tests.support.picture_files import GOOD, HEIGHT, WIDTH, png_chunk, png_header

MANY = 200_000
HEADER_STEPS, FILE_STEPS = 30_000, 100_000
"""Fewer than MANY pieces would take, of which each is several steps."""

EMPTY_SEGMENT = b"\xff\xe0\x00\x02"
EMPTY_SCAN = b"\xff\xda\x00\x02"
EMPTY_TEXT = png_chunk(b"tEXt", b"")
EMPTY_WEBP_CHUNK = b"JUNK" + bytes(4)
SOI, EOI = b"\xff\xd8", b"\xff\xd9"


def steps(work: Callable[[], object]) -> int:
    """Calls made and returned from, of Python and of C functions, until `work` refuses the file."""
    count = 0

    def one_more(*_: object) -> None:
        nonlocal count
        count += 1

    before = sys.getprofile()
    sys.setprofile(one_more)
    try:
        work()
    except PictureUndecodable:
        return count
    finally:
        sys.setprofile(before)
    pytest.fail("The file was not refused.")


def jpeg_with(pieces: bytes, *, before: bytes) -> bytes:
    position = GOOD["jpeg"].index(before)
    return GOOD["jpeg"][:position] + pieces + GOOD["jpeg"][position:]


def png_with(*, before_data: bytes = b"", after_data: bytes = b"") -> bytes:
    data = png_chunk(b"IDAT", zlib.compress(bytes((1 + 3 * WIDTH) * HEIGHT)))
    end = png_chunk(b"IEND", b"")
    return png.SIGNATURE + png_header(WIDTH, HEIGHT) + before_data + data + after_data + end


def webp_with(chunks: bytes) -> bytes:
    data = GOOD["webp"] + chunks
    return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]


@pytest.mark.parametrize(
    "data",
    [
        jpeg_with(EMPTY_SEGMENT * MANY, before=b"\xff\xc0"),
        jpeg_with(b"\xff\x01" * MANY, before=b"\xff\xc0"),  # markers without a payload
        jpeg_with(EMPTY_SCAN * MANY, before=b"\xff\xc0"),
        jpeg_with(bytes(jpeg.MAX_GARBAGE_BYTES + 1), before=b"\xff\xc0"),
        jpeg_with((EMPTY_SEGMENT + bytes(jpeg.MAX_GARBAGE_BYTES // 2)) * 3, before=b"\xff\xc0"),
        SOI + b"\xff" * 1_000_000,
        png_with(before_data=EMPTY_TEXT * MANY),
    ],
)
def test_a_header_is_not_looked_for_without_end(data: bytes) -> None:
    assert steps(lambda: read_header(data)) < HEADER_STEPS


@pytest.mark.parametrize(
    "data",
    [
        jpeg_with(EMPTY_SEGMENT * MANY, before=b"\xff\xda"),
        jpeg_with(EMPTY_SEGMENT * MANY, before=EOI),
        jpeg_with(EMPTY_SCAN * MANY, before=EOI),
        GOOD["jpeg"][:-2] + b"\xff\x00" * MANY,
        GOOD["jpeg"][:-2] + b"\xff" * MANY,
        png_with(after_data=png_chunk(b"IDAT", b"") * MANY),
        png_with(after_data=EMPTY_TEXT * MANY),
        webp_with(EMPTY_WEBP_CHUNK * MANY),
    ],
)
def test_a_file_is_not_walked_through_without_end(data: bytes) -> None:
    read_header(data)

    assert steps(lambda: decode_rgb(data, max_pixels=WIDTH * HEIGHT)) < FILE_STEPS


@pytest.mark.parametrize(
    "data",
    [
        jpeg_with(EMPTY_SEGMENT * (jpeg.MAX_SEGMENTS - 50), before=b"\xff\xc0"),
        jpeg_with(bytes(jpeg.MAX_GARBAGE_BYTES), before=b"\xff\xc0"),
        png_with(before_data=EMPTY_TEXT * (png.MAX_CHUNKS_BEFORE_DATA - 2)),
        png_with(after_data=png_chunk(b"IDAT", b"") * (png.MAX_CHUNKS - 3)),
        webp_with(EMPTY_WEBP_CHUNK * (webp.MAX_CHUNKS - 1)),
    ],
)
def test_as_much_as_is_allowed_is_decoded(data: bytes) -> None:
    assert decode_rgb(data, max_pixels=WIDTH * HEIGHT).shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize(
    "scan_bytes", [0, 1, *range(jpeg.SCAN_BYTES_AT_A_TIME - 2, jpeg.SCAN_BYTES_AT_A_TIME + 3)]
)
def test_the_end_of_a_scan_is_found_wherever_it_lies(scan_bytes: int) -> None:
    whole = SOI + EMPTY_SCAN + bytes(scan_bytes) + EOI

    assert jpeg.complete_picture(whole + bytes(10)) == whole


@given(scan=st.lists(st.sampled_from([0x00, 0x01, 0xD0, 0xD7, 0xD9, 0xFF])).map(bytes))
def test_a_picture_ends_at_the_first_end_whatever_the_scan_is_made_of(scan: bytes) -> None:
    data = SOI + EMPTY_SCAN + scan + EOI

    assert jpeg.complete_picture(data) == data[: data.index(EOI) + 2]


def test_the_orientation_is_not_read_from_what_follows_a_webp() -> None:
    tag = b"II*\x00\x08\x00\x00\x00\x01\x00" + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    chunk = b"EXIF" + struct.pack("<I", len(tag)) + tag

    assert decode_rgb(webp_with(chunk), max_pixels=WIDTH * HEIGHT).shape == (WIDTH, HEIGHT, 3)
    np.testing.assert_array_equal(
        decode_rgb(GOOD["webp"] + chunk, max_pixels=WIDTH * HEIGHT),
        decode_rgb(GOOD["webp"], max_pixels=WIDTH * HEIGHT),
    )
