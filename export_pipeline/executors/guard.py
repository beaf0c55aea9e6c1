"""A guard between a caller and the program that it starts: however either ends, nothing is left running.

::

    caller ──(stdin: a pipe that nobody writes to)──► guard ──► program ──► whatever it starts
                                                        ▲          └── killed by the kernel if the guard dies
                                                        └── ends everything when the pipe closes,
                                                            the caller is gone, or the program has ended

Run as `python -I -S guard.py CALLER_PID PROGRAM ARGUMENTS…`; ends as the program ended, by the same signal if
by one. It adopts every orphan below it (PR_SET_CHILD_SUBREAPER), so no daemon gets away.

Imports the standard library only, and is run as a file, so that it is up in milliseconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_CANNOT_RUN = 127


def main(caller: int, argv: list[str]) -> int:
    """The program's exit status, below zero for a signal."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    # A process id of a caller that is gone may be another's by now.
    caller_ends = os.pidfd_open(caller) if os.getppid() == caller else -1
    if caller_ends < 0 or os.getppid() != caller:
        return _CANNOT_RUN
    program = _start(argv)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the caller decides, by closing the pipe
    select.select([0, caller_ends, os.pidfd_open(program)], [], [])
    return _end_all(program)


def _start(argv: list[str]) -> int:
    guard = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == guard:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.execv(argv[0], argv)  # noqa: S606 - the caller's own program, given as a list
    except OSError as error:
        os.write(2, f"cannot run {argv[0]}: {error}\n".encode())
    os._exit(_CANNOT_RUN)


def _end_all(program: int) -> int:
    """Kill until no child is left: what loses its parent becomes ours, so this reaches the whole tree."""
    status = -signal.SIGKILL
    while True:
        for pid in _children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            pid, wait_status = os.waitpid(-1, 0)
        except ChildProcessError:
            return status
        if pid == program:
            status = os.waitstatus_to_exitcode(wait_status)


def _children() -> Iterator[int]:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):  # it ended just now, and there is nothing to read
            # 4711 (a name, which may hold anything) S 4710 …
            if int(stat.read_text(errors="replace").rpartition(")")[2].split()[1]) == os.getpid():
                yield int(stat.parent.name)


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    code = main(int(sys.argv[1]), sys.argv[2:])
    if code < 0:
        with contextlib.suppress(OSError, ValueError):  # SIGKILL has no disposition to set
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)
