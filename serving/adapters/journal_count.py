"""What lies in the journals of this machine, for who does not replay them."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from serving.adapters.journal_file import DAMAGED_SUFFIX, REFUSED_SUFFIX, SUFFIX

_PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class JournalCount:
    """waiting: events that Redis may not have yet. damaged: files that were set aside, for a person: what
    cannot be read, and what Redis refuses.
    """

    waiting: int = 0
    damaged: int = 0


def count_journals(folder: Path) -> JournalCount:
    """Whole lines, of files in whatever hands. One that is being replayed counts until it is gone. Blocks."""
    waiting = sum(map(_lines, folder.glob(f"*{SUFFIX}")))
    set_aside = (path for each in (DAMAGED_SUFFIX, REFUSED_SUFFIX) for path in folder.glob(f"*{each}"))
    return JournalCount(waiting, damaged=sum(1 for _ in set_aside))


def _lines(path: Path) -> int:
    lines = 0
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:  # handed over just now
        while piece := file.read(_PIECE_BYTES):
            lines += piece.count(b"\n")
    return lines
