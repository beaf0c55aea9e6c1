"""Memory of real processes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from export_pipeline.executors.process_tree import memory_bytes

MEBIBYTE = 1024**2
HOLD = "kept = b'x' * {size}; print(flush=True); input()"
HOLD_SHARED = (
    "import mmap; kept = mmap.mmap(-1, {size}); kept.write(b'x' * {size}); print(flush=True); input()"
)
HOLD_BELOW = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {hold!r}], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline(); print(flush=True); input(); child.communicate(b"end")
"""


def used_by(program: str) -> int:
    with subprocess.Popen(
        [sys.executable, "-I", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        used = memory_bytes(process.pid)
        process.communicate(b"end\n")
    return used


@pytest.mark.parametrize(
    "program",
    [
        HOLD.format(size=200 * MEBIBYTE),
        HOLD_BELOW.format(hold=HOLD.format(size=200 * MEBIBYTE)),
    ],
)
def test_memory_counts_wherever_it_is(program: str) -> None:
    assert 200 * MEBIBYTE <= used_by(program) < 260 * MEBIBYTE


def test_shared_memory_counts() -> None:
    # Python's own copy of what it writes was there for a moment, and need not be any more.
    assert used_by(HOLD_SHARED.format(size=200 * MEBIBYTE)) >= 200 * MEBIBYTE


def test_a_process_that_is_gone_uses_nothing() -> None:
    process = subprocess.Popen([sys.executable, "-I", "-c", ""])
    process.wait()

    assert memory_bytes(process.pid) == 0
