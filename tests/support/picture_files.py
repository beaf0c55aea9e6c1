"""Files of every kind, made by Pillow or byte by byte."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

WIDTH, HEIGHT = 37, 23
ORIENTATION_TAG = 0x0112


def picture(seed: int = 0, *, channels: int = 3) -> NDArray[np.uint8]:
    """(HEIGHT, WIDTH, channels): soft blotches, so that lossy formats stay near it."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 6, channels), dtype=np.uint8)
    return cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC).astype(np.uint8)


def saved(format: str, *, mode: str = "RGB", **options: Any) -> bytes:
    return saved_image(Image.fromarray(picture()).convert(mode), format, **options)


def saved_image(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def with_orientation(format: str, orientation: int, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    return saved(format, exif=exif, **options)


def animated(format: str) -> bytes:
    frames = [Image.fromarray(picture(seed)) for seed in range(3)]
    return saved_image(frames[0], format, save_all=True, append_images=frames[1:])


def sixteen_bit_png() -> bytes:
    deep = picture().astype(np.uint16) * 256 + 99
    return cv2.imencode(".png", deep)[1].tobytes()


def png_chunk(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


def png_header(width: int, height: int) -> bytes:
    return png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def png(width: int, height: int, *, before_data: bytes = b"", after_data: bytes = b"") -> bytes:
    """A black RGB picture, however large: it compresses to about a thousandth."""
    rows = zlib.compressobj(9)
    row = bytes(1 + 3 * width)
    data = b"".join(rows.compress(row) for _ in range(height)) + rows.flush()
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_header(width, height)
        + before_data
        + png_chunk(b"IDAT", data)
        + after_data
        + png_chunk(b"IEND", b"")
    )


def unfilled_png(width: int, height: int) -> bytes:
    """Claims its size and has a few bytes of data only."""
    data = png_chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + png_header(width, height) + data + png_chunk(b"IEND", b"")


GOOD: dict[str, bytes] = {
    "jpeg": saved("JPEG", quality=90),
    "jpeg, progressive": saved("JPEG", progressive=True),
    "jpeg, grey": saved("JPEG", mode="L"),
    "jpeg, cmyk": saved("JPEG", mode="CMYK"),
    "jpeg, restart markers": saved("JPEG", restart_marker_blocks=1),
    "png": saved("PNG"),
    "png, grey": saved("PNG", mode="L"),
    "png, grey and alpha": saved("PNG", mode="LA"),
    "png, palette": saved("PNG", mode="P"),
    "png, one bit": saved("PNG", mode="1"),
    "png, alpha": saved_image(Image.fromarray(picture(channels=4)), "PNG"),
    "png, 16 bits": sixteen_bit_png(),
    "png, other chunks": png(
        WIDTH, HEIGHT, before_data=png_chunk(b"tEXt", b"a\x00b"), after_data=png_chunk(b"tIME", bytes(7))
    ),
    "webp": saved("WEBP"),
    "webp, lossless": saved("WEBP", lossless=True),
    "webp, alpha": saved_image(Image.fromarray(picture(channels=4)), "WEBP"),
    "bmp": saved("BMP"),
    "bmp, grey": saved("BMP", mode="L"),
    "bmp, palette": saved("BMP", mode="P"),
}
