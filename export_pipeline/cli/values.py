"""Options that are written for people: sizes, memory, time."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

import typer

_BYTES: Final = {"KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "TiB": 1024**4}
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600}


class PictureSize(NamedTuple):
    """In pixels."""

    width: int
    height: int


def picture_size(text: str) -> PictureSize:
    """`320` or `640x384`. Raises typer.BadParameter."""
    match = re.fullmatch(r"([0-9]{1,5})(?:x([0-9]{1,5}))?", text)
    if match is None:
        raise typer.BadParameter(f"{text!r} is no size; write 320, or 640x384 for a width and a height.")
    return PictureSize(int(match[1]), int(match[2] or match[1]))


def memory(text: str) -> int:
    """`12GiB`, `900MiB`: bytes. Raises typer.BadParameter."""
    match = re.fullmatch(r"([0-9]{1,6})(KiB|MiB|GiB|TiB)", text)
    if match is None:
        raise typer.BadParameter(f"{text!r} is no amount of memory; write 12GiB or 900MiB.")
    return int(match[1]) * _BYTES[match[2]]


def duration(text: str) -> float:
    """`90s`, `30m`, `2h`: seconds. Raises typer.BadParameter."""
    match = re.fullmatch(r"([0-9]{1,6})([smh])", text)
    if match is None:
        raise typer.BadParameter(f"{text!r} is no duration; write 90s, 30m or 2h.")
    return float(int(match[1]) * _SECONDS[match[2]])
