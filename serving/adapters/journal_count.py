"""How many events wait in the journals of this machine, for who does not replay them."""

from __future__ import annotations

import contextlib
from pathlib import Path

from serving.adapters.journal_file import SUFFIX

_PIECE_BYTES = 1 << 20


def count_waiting(folder: Path) -> int:
    """Whole lines, of files in whatever hands. One that is being replayed counts until it is gone."""
    return sum(map(_lines, folder.glob(f"*{SUFFIX}")))


def _lines(path: Path) -> int:
    lines = 0
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:  # handed over just now
        while piece := file.read(_PIECE_BYTES):
            lines += piece.count(b"\n")
    return lines
