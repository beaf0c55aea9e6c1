"""What a file says of itself, read from its first bytes: nothing is decoded or allocated for its pixels."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from serving.errors import PictureTooLarge, PictureUndecodable, UnsupportedMediaType
from serving.vision.formats import StoredDimensions, bmp, jpeg, png, webp

MediaType = Literal["image/jpeg", "image/png", "image/webp", "image/bmp"]

_READERS: dict[MediaType, Callable[[bytes], StoredDimensions]] = {
    "image/jpeg": jpeg.read_dimensions,
    "image/png": png.read_dimensions,
    "image/webp": webp.read_dimensions,
    "image/bmp": bmp.read_dimensions,
}
# (offset, signature, media type) of what a person may well send and we do not take.
_REFUSED_SIGNATURES = (
    (0, b"GIF87a", "image/gif"),
    (0, b"GIF89a", "image/gif"),
    (0, b"II*\x00", "image/tiff"),
    (0, b"MM\x00*", "image/tiff"),
    (4, b"ftypavif", "image/avif"),
    (4, b"ftypavis", "image/avif"),
    (4, b"ftyphei", "image/heic"),
    (4, b"ftyphev", "image/heic"),
    (4, b"ftypmif1", "image/heif"),
    (0, b"\x00\x00\x00\x0cjP  \r\n\x87\n", "image/jp2"),
    (0, b"\xff\x0a", "image/jxl"),
    (0, b"\x00\x00\x00\x0cJXL \r\n\x87\n", "image/jxl"),
    (0, b"8BPS", "image/vnd.adobe.photoshop"),
    (0, b"\x00\x00\x01\x00", "image/x-icon"),
    (0, b"\x76\x2f\x31\x01", "image/x-exr"),
    (0, b"%PDF-", "application/pdf"),
    (0, b"<svg", "image/svg+xml"),
    (4, b"ftyp", "video/mp4"),
)


@dataclass(frozen=True, slots=True)
class PictureHeader:
    """width, height: in pixels as stored, both at least 1; EXIF orientation may still swap them."""

    media_type: MediaType
    width: int
    height: int
    animated: bool

    def pixels_within(self, max_pixels: int) -> int:
        """How many pixels decoding makes. Raises PictureTooLarge where that is more than `max_pixels`."""
        pixels = self.width * self.height
        if pixels > max_pixels:
            raise PictureTooLarge(self.width, self.height, max_pixels)
        return pixels


def read_header(data: bytes) -> PictureHeader:
    """Raises UnsupportedMediaType for a known format that is not accepted, else PictureUndecodable."""
    media_type = _media_type(data)
    try:
        stored = _READERS[media_type](data)
    except (struct.error, IndexError) as exc:
        raise PictureUndecodable from exc
    if stored.width < 1 or stored.height < 1:
        raise PictureUndecodable(f"A picture of {stored.width} x {stored.height} pixels has no pixels.")
    return PictureHeader(media_type, stored.width, stored.height, stored.animated)


def _media_type(data: bytes) -> MediaType:
    if data.startswith(jpeg.SIGNATURE):
        return "image/jpeg"
    if data.startswith(png.SIGNATURE):
        return "image/png"
    if webp.is_webp(data):
        return "image/webp"
    if bmp.is_bmp(data):
        return "image/bmp"
    for offset, signature, media_type in _REFUSED_SIGNATURES:
        if data.startswith(signature, offset):
            raise UnsupportedMediaType(media_type)
    raise PictureUndecodable("The data is not a picture.")
