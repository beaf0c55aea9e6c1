"""The most memory that a process has held since some moment: what a bound on memory is about."""

from __future__ import annotations

import os
from pathlib import Path


class PeakMemory:
    """Linux keeps the mark; writing 5 to `clear_refs` lowers it to what is held now (proc(5))."""

    def __init__(self, pid: int | None = None) -> None:
        self._folder = Path("/proc", str(pid or os.getpid()))
        (self._folder / "clear_refs").write_text("5")
        self._before_bytes = self._mark_bytes()

    def growth_bytes(self) -> int:
        return self._mark_bytes() - self._before_bytes

    def _mark_bytes(self) -> int:
        """`VmHWM:\t   10896 kB`"""
        for line in (self._folder / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError(f"{self._folder} is no process with memory of its own")
