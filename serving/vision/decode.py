"""Encoded files to pixels, with nothing handed to OpenCV that has not been looked at first.

OpenCV answers a cut-off file with a half-grey picture, allocates what a header claims, and shows the first
frame of an animation. So the header decides on size and kind, the walk over the whole file on its structure,
and only then does OpenCV decode what the walk has kept.

Detected, and refused: a file of any format that ends too early, at whatever byte. In a PNG also every damage
to its chunks, which carry checksums, and pixel data that are too few; in a WebP pixel data that are too few.

Not detected: damage inside a JPEG's scans. Its data carry no checksum, and libjpeg fills up with grey what
it cannot read, of which OpenCV gives no sign. A JPEG cut off in a scan that was given an end-of-image marker
again is therefore decoded, half grey, as are flipped bits, also in a WebP. A BMP is believed: where its
compressed rows end early, the rest is of its first colour.

Of such files libjpeg and libpng may each write a line to stderr, which OpenCV does not let one turn off.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from serving.errors import PictureUndecodable, UnsupportedMediaType
from serving.vision.formats import bmp, jpeg, png, webp
from serving.vision.header import MediaType, PictureHeader, read_header
from serving.vision.orientation import read_orientation, upright

_LOG_LEVEL_SILENT = 0
# A broken picture is the client's business, answered to the client. OpenCV 5 has no such switch, and needs
# none.
if hasattr(cv2, "setLogLevel"):
    cv2.setLogLevel(_LOG_LEVEL_SILENT)

_COMPLETE_PICTURE: dict[MediaType, Callable[[bytes], bytes | memoryview]] = {
    "image/jpeg": jpeg.complete_picture,
    "image/png": png.complete_picture,
    "image/webp": webp.complete_picture,
    "image/bmp": bmp.complete_picture,
}


def decode_rgb(data: bytes, *, max_pixels: int) -> NDArray[np.uint8]:
    """Pixels as (H, W, 3) uint8 RGB, turned upright by the file's EXIF orientation.

    Equal to `cv2.IMREAD_COLOR` with its channels flipped: grey and palette become RGB, alpha is dropped, of
    16 bits the upper 8 stay, CMYK is converted. An animated PNG or WebP is refused, not cut down to one
    frame.

    Raises UnsupportedMediaType, PictureTooLarge (from the header, before anything is allocated),
    PictureUndecodable.
    """
    header = read_header(data)
    header.pixels_within(max_pixels)
    if header.animated:
        raise UnsupportedMediaType(f"animated {header.media_type}")
    picture = _decode_upright(data, header)
    if sorted(picture.shape[:2]) != sorted((header.height, header.width)):
        raise PictureUndecodable("The picture is not of the size that its header states.")
    return picture


def _decode_upright(data: bytes, header: PictureHeader) -> NDArray[np.uint8]:
    encoded = _complete_picture(data, header.media_type)
    if header.media_type != "image/webp":
        return _imdecode(encoded, cv2.IMREAD_COLOR_RGB)
    orientation = read_orientation(webp.exif(encoded))
    return upright(_imdecode(encoded, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION), orientation)


def _complete_picture(data: bytes, media_type: MediaType) -> bytes | memoryview:
    try:
        return _COMPLETE_PICTURE[media_type](data)
    except (struct.error, IndexError) as exc:
        raise PictureUndecodable from exc


def _imdecode(encoded: bytes | memoryview, flags: int) -> NDArray[np.uint8]:
    try:
        picture: cv2.typing.MatLike | None = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    except cv2.error as exc:
        raise PictureUndecodable from exc
    if picture is None:
        raise PictureUndecodable
    return picture.astype(np.uint8, copy=False)
