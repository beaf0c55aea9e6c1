from __future__ import annotations

import pytest

from serving.errors import PictureTooLarge, PictureUndecodable, UnsupportedMediaType
from serving.vision.header import MediaType, PictureHeader, read_header
from tests.support.picture_files import (
    GOOD,
    HEIGHT,
    WIDTH,
    animated,
    png,
    png_chunk,
    saved,
    unfilled_png,
    with_orientation,
)

MEDIA_TYPES: dict[str, MediaType] = {
    "jpeg": "image/jpeg",
    "png": "image/png",
    "webp": "image/webp",
    "bmp": "image/bmp",
}


@pytest.mark.parametrize("name", GOOD)
def test_every_accepted_format_says_its_size(name: str) -> None:
    media_type = MEDIA_TYPES[name.partition(",")[0]]

    assert read_header(GOOD[name]) == PictureHeader(media_type, WIDTH, HEIGHT, animated=False)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_the_size_is_the_stored_one_whatever_the_orientation(format: str) -> None:
    header = read_header(with_orientation(format, 6))

    assert (header.width, header.height) == (WIDTH, HEIGHT)


@pytest.mark.parametrize(("format", "media_type"), [("PNG", "image/png"), ("WEBP", "image/webp")])
def test_an_animation_is_known_as_one(format: str, media_type: MediaType) -> None:
    assert read_header(animated(format)) == PictureHeader(media_type, WIDTH, HEIGHT, animated=True)


@pytest.mark.parametrize(
    ("name", "needed"), [("jpeg", 400), ("png", 41), ("webp", 30), ("webp, lossless", 25), ("bmp", 54)]
)
def test_the_first_bytes_are_enough(name: str, needed: int) -> None:
    if name == "jpeg":
        needed = GOOD[name].index(b"\xff\xc0") + 11

    assert read_header(GOOD[name][:needed]) == read_header(GOOD[name])


@pytest.mark.parametrize(
    "data",
    [
        b"",  # nothing
        b"\x00",
        b"Hello, I am a JPEG.",
        b"BM is how this text begins, and a bitmap too",
        b"RIFF\x00\x00\x00\x00WAVEfmt ",  # RIFF, but sound
        b"\xff\xd8\xff",  # a signature and no more
        b"\xff\xd8\xff\xd9",  # a JPEG of nothing
        b"\xff\xd8\xff\xe0\xff\xff",  # its first segment reaches behind the end
        b"\x89PNG\r\n\x1a\n",
        b"\x89PNG\r\n\x1a\n" + png_chunk(b"IDAT", b"1234567890123"),  # header missing
        b"RIFF\x04\x00\x00\x00WEBP",
        b"RIFF\x20\x00\x00\x00WEBPVP8 " + bytes(20),  # no start code
        b"BM" + bytes(12) + b"\x28\x00\x00\x00",
        unfilled_png(0, 7),  # no columns
        unfilled_png(7, 0),
    ],
)
def test_what_is_no_picture_is_undecodable(data: bytes) -> None:
    with pytest.raises(PictureUndecodable):
        read_header(data)


@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        (animated("GIF"), "image/gif"),
        (saved("TIFF"), "image/tiff"),
        (saved("JPEG2000"), "image/jp2"),
        (saved("ICO"), "image/x-icon"),
        (b"\x00\x00\x00\x1cftypavif" + bytes(16), "image/avif"),
        (b"\x00\x00\x00\x1cftypheic" + bytes(16), "image/heic"),
        (b"%PDF-1.7\n", "application/pdf"),
    ],
)
def test_a_known_format_that_is_not_accepted_is_named(data: bytes, media_type: str) -> None:
    with pytest.raises(UnsupportedMediaType, match=media_type):
        read_header(data)


def test_pixels_up_to_the_limit_are_counted_and_more_refused() -> None:
    header = read_header(png(20, 10))

    assert header.pixels_within(200) == 200
    with pytest.raises(PictureTooLarge, match="20 x 10 pixels is more than the limit of 199"):
        header.pixels_within(199)
