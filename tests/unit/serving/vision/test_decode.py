from __future__ import annotations

import struct
import zlib
from contextlib import suppress

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from serving.errors import PictureTooLarge, PictureUndecodable, UnsupportedMediaType, VisiongateError
from serving.vision.decode import decode_rgb
from serving.vision.formats.jpeg import MAX_SCANS
from tests.support.memory import PeakMemory
from tests.support.picture_files import (
    GOOD,
    HEIGHT,
    WIDTH,
    animated,
    picture,
    png,
    png_chunk,
    saved,
    unfilled_png,
    with_orientation,
)

MAX_PIXELS = 1_000_000
ENORMOUS = {
    "png": unfilled_png(30_000, 30_000),
    "png, well-formed": png(30_000, 300),
    "jpeg": GOOD["jpeg"].replace(struct.pack(">HH", HEIGHT, WIDTH), struct.pack(">HH", 30_000, 30_000)),
    "webp": b"RIFF\x0a\x01\x00\x00WEBPVP8X\x0a\x00\x00\x00" + bytes(4) + b"\x2f\x75\x00" * 2 + bytes(244),
    "bmp": GOOD["bmp"][:18] + struct.pack("<ii", 30_000, -30_000) + GOOD["bmp"][26:],
}


def decode(data: bytes) -> NDArray[np.uint8]:
    return decode_rgb(data, max_pixels=MAX_PIXELS)


def as_ultralytics_reads_it(data: bytes) -> NDArray[np.uint8]:
    """(H, W, 3) BGR."""
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).astype(np.uint8)


@pytest.mark.parametrize("name", GOOD)
def test_pixels_are_those_that_ultralytics_predicts_on(name: str) -> None:
    rgb = decode(GOOD[name])

    assert rgb.shape == (HEIGHT, WIDTH, 3)
    assert rgb.dtype == np.uint8
    np.testing.assert_array_equal(rgb[..., ::-1], as_ultralytics_reads_it(GOOD[name]))


@pytest.mark.parametrize("name", ["png", "webp, lossless", "bmp"])
def test_what_was_stored_without_loss_comes_back_in_rgb(name: str) -> None:
    np.testing.assert_array_equal(decode(GOOD[name]), picture())


def test_a_cmyk_picture_keeps_its_colours() -> None:
    difference = decode(GOOD["jpeg, cmyk"]).astype(int) - picture()

    assert np.abs(difference).mean() < 8


def test_of_16_bits_the_upper_8_stay() -> None:
    np.testing.assert_array_equal(decode(GOOD["png, 16 bits"])[..., ::-1], picture())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("format", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("JPEG", {"quality": 95})]
)
def test_exif_orientation_is_applied(format: str, options: dict[str, bool], orientation: int) -> None:
    tag = Image.Exif()
    tag[0x0112] = orientation
    taken = Image.fromarray(picture())
    taken.getexif()[0x0112] = orientation
    upright = np.asarray(ImageOps.exif_transpose(taken))

    rgb = decode(with_orientation(format, orientation, **options))

    assert rgb.flags["C_CONTIGUOUS"]
    np.testing.assert_allclose(rgb, upright, atol=60 if format == "JPEG" else 0)


@pytest.mark.parametrize(
    "exif", [b"", b"II*\x00", b"MM\x00*\x00\x00\x00\x08\x00\x09", b"II*\x00\xff\xff\xff\xff", b"garbage!"]
)
def test_a_damaged_orientation_leaves_the_picture_as_it_is(exif: bytes) -> None:
    data = saved("WEBP", lossless=True, exif=b"Exif\x00\x00" + exif)

    np.testing.assert_array_equal(decode(data), picture())


@pytest.mark.parametrize("name", ENORMOUS)
def test_too_many_pixels_are_refused_from_the_header(name: str) -> None:
    with pytest.raises(PictureTooLarge, match="is more than the limit"):
        decode(ENORMOUS[name])


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_an_animation_is_refused_with_a_word_about_it(format: str) -> None:
    with pytest.raises(UnsupportedMediaType, match=f"animated image/{format.lower()}"):
        decode(animated(format))


@pytest.mark.parametrize("name", GOOD)
def test_a_file_cut_off_anywhere_is_refused(name: str) -> None:
    data = GOOD[name]
    accepted = []
    for length in range(len(data)):
        try:
            decode(data[:length])
        except PictureUndecodable:
            continue
        accepted.append(length)

    assert accepted == []


def shortened(name: str) -> bytes:
    """Half of the pixel data is missing, and everything around it says otherwise."""
    data = GOOD[name]
    if name.startswith("jpeg"):
        return data[: (data.rindex(b"\xff\xda") + len(data)) // 2] + b"\xff\xd9"
    if name.startswith("webp"):
        half = data[20 : 20 + (len(data) - 20) // 4 * 2]
        return b"RIFF" + struct.pack("<I", 12 + len(half)) + data[8:16] + struct.pack("<I", len(half)) + half
    begin = data.index(b"IDAT") + 4
    length = struct.unpack_from(">I", data, begin - 8)[0]
    half_chunk = png_chunk(b"IDAT", data[begin : begin + length // 2])
    return data[: begin - 8] + half_chunk + data[begin + length + 4 :]


@pytest.mark.parametrize("name", ["png", "webp", "webp, lossless"])
def test_too_few_pixel_data_are_refused(name: str) -> None:
    with pytest.raises(PictureUndecodable):
        decode(shortened(name))


@pytest.mark.parametrize("position", [0, 20, -5])
def test_damage_to_the_data_of_a_png_is_refused(position: int) -> None:
    data = bytearray(GOOD["png"])
    begin = data.index(b"IDAT") + 4
    end = data.index(b"IEND") - 8
    data[range(begin, end)[position]] ^= 1

    with pytest.raises(PictureUndecodable):
        decode(bytes(data))


def test_too_few_data_in_a_jpeg_that_has_its_end_go_unseen(capfd: pytest.CaptureFixture[str]) -> None:
    """What the module says that it cannot tell: only libjpeg's line for the operator does."""
    rgb = decode(shortened("jpeg"))

    assert (rgb[-4:] == 128).all()
    assert "premature end" in capfd.readouterr().err


def test_the_end_of_an_exif_thumbnail_is_not_the_end_of_the_picture() -> None:
    thumbnail = saved("JPEG", quality=30)
    data = saved("JPEG", exif=b"Exif\x00\x00II*\x00" + thumbnail)
    assert data.index(b"\xff\xd9") < data.index(b"\xff\xda", data.index(thumbnail) + len(thumbnail))

    with pytest.raises(PictureUndecodable, match="cut off"):
        decode(data[:-2])
    assert decode(data).shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("name", ["jpeg", "png", "webp", "bmp"])
def test_what_follows_the_picture_is_of_no_account(name: str) -> None:
    np.testing.assert_array_equal(decode(GOOD[name] + GOOD[name]), decode(GOOD[name]))


def test_a_jpeg_of_thousands_of_scans_is_refused_before_it_costs_anything() -> None:
    data = GOOD["jpeg, progressive"]
    last_scan = data[data.rindex(b"\xff\xda") : -2]

    assert decode(data[:-2] + last_scan + b"\xff\xd9").shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(PictureUndecodable, match="scans"):
        decode(data[:-2] + last_scan * MAX_SCANS + b"\xff\xd9")


def test_a_frame_larger_than_the_picture_does_not_reach_opencv() -> None:
    """OpenCV 4.11 writes out of bounds on it, and the process dies."""
    frame = struct.pack(">IIIIIHHBB", 0, 4_000, 4_000, 0, 0, 1, 1, 0, 0)
    control = png_chunk(b"acTL", struct.pack(">II", 2, 0))

    with pytest.raises(UnsupportedMediaType, match="animated"):
        decode(png(10, 10, before_data=control + png_chunk(b"fcTL", frame)))
    late = png(10, 10, after_data=control + png_chunk(b"fcTL", frame) + png_chunk(b"fdAT", bytes(99)))
    assert decode(late).shape == (10, 10, 3)


def test_a_second_header_in_a_png_does_not_make_it_larger() -> None:
    second = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 5_000, 5_000, 8, 2, 0, 0, 0))

    with pytest.raises(PictureUndecodable):
        decode(png(10, 10, before_data=second))


def test_compressed_text_is_not_inflated() -> None:
    bomb = png_chunk(b"zTXt", b"a\x00\x00" + zlib.compress(bytes(50_000_000)))
    memory = PeakMemory()

    assert decode(png(10, 10, before_data=bomb)).shape == (10, 10, 3)
    assert memory.growth_bytes() < 8_000_000


@st.composite
def damaged_files(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(st.sampled_from(sorted(GOOD.values()))))
    for _ in range(draw(st.integers(1, 6))):
        position = draw(st.integers(0, len(data) - 1))
        match draw(st.sampled_from(["set", "remove", "insert"])):
            case "set":
                data[position] = draw(st.integers(0, 255))
            case "remove":
                del data[position : min(position + draw(st.integers(1, 40)), len(data) - 1)]
            case "insert":
                data[position:position] = draw(st.binary(max_size=40))
    return bytes(data)


@given(data=st.one_of(damaged_files(), st.binary(max_size=200)))
@settings(max_examples=400, deadline=None)
def test_whatever_arrives_it_is_a_picture_within_the_limit_or_one_of_our_errors(data: bytes) -> None:
    memory = PeakMemory()
    try:
        rgb = decode(data)
    except VisiongateError:
        pass
    else:
        assert rgb.ndim == 3
        assert rgb.shape[0] * rgb.shape[1] <= MAX_PIXELS

    assert memory.growth_bytes() < 40 * MAX_PIXELS


@given(
    chunk=st.tuples(st.sampled_from([b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"bKGD"]), st.binary(max_size=60))
)
@settings(max_examples=150, deadline=None)
def test_well_formed_chunks_of_nonsense_do_no_harm(chunk: tuple[bytes, bytes]) -> None:
    with suppress(PictureUndecodable):
        assert decode(png(10, 10, before_data=png_chunk(*chunk))).shape == (10, 10, 3)


def test_opencv_keeps_quiet_about_broken_pictures(capfd: pytest.CaptureFixture[str]) -> None:
    unknown_compression = bytearray(GOOD["bmp"])
    unknown_compression[30] = 99

    with pytest.raises(PictureUndecodable):
        decode(bytes(unknown_compression))

    assert capfd.readouterr().err == ""
