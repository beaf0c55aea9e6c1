"""What a process and all below it use, as /proc tells it."""

from __future__ import annotations

import contextlib
from pathlib import Path

_KIBIBYTE = 1024


def memory_bytes(root_pid: int) -> int:
    """Memory that is theirs alone to give back: not the pages of files, which the kernel can drop.

    What a parent and a child share counts for both.
    """
    return sum(_own_memory_bytes(pid) for pid in _descendants(root_pid))


def _descendants(root_pid: int) -> set[int]:
    """With the root itself."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):  # it ended just now, and there is nothing to read
            # 4711 (a name, which may hold anything) S 4710 …
            parents[int(stat.parent.name)] = int(
                stat.read_text(errors="replace").rpartition(")")[2].split()[1]
            )
    found = {root_pid}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def _own_memory_bytes(pid: int) -> int:
    """RssAnon and RssShmem of proc_pid_status(5)."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except OSError:
        return 0
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return sum(int(fields[name].split()[0]) * _KIBIBYTE for name in ("RssAnon", "RssShmem") if name in fields)
