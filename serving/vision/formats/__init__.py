"""What must be known of a file before OpenCV may see it: one module per accepted format, same two functions.

`read_dimensions(data)` reads the first bytes. `complete_picture(data)` walks the whole file and answers the
bytes that make up one picture, or raises PictureUndecodable. Both expect the format's signature to have been
seen, and let IndexError and struct.error out where the data ends too early.

The steps that either takes are bounded, however long the file: `read_dimensions` runs on the event loop.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StoredDimensions:
    """In pixels as stored, before any EXIF orientation; not checked to be positive."""

    width: int
    height: int
    animated: bool = False
