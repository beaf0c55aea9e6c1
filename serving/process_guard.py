"""A guard between us and a program that we start: whatever dies, and however, nothing is left running.

::

    us ──(stdin: a pipe that nobody writes to)──► guard ──► program ──► its own children
                                                    ▲          └── killed by the kernel when the guard dies
                                                    └── ends everything when the pipe closes or we are gone

Run as `python -I -S process_guard.py PARENT_PID PID_FD PROGRAM ARGUMENTS…`. It writes the program's process
id to PID_FD, passes SIGTERM on, and ends with the program's own status (128 + N for signal N).

Why not PR_SET_PDEATHSIG alone, set by us: the kernel sends it when the *thread* that forked ends, it needs
code between fork and exec in a process full of threads, and it spares the program's children (Triton's Python
stubs live on for a second or two after a `kill -9` of tritonserver). The guard has one thread, so there it is
sound; it adopts every orphan below it (PR_SET_CHILD_SUBREAPER), so it can end them all, in whichever group.

Imports the standard library only, so that it is up in milliseconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
PARENT_CHECK_SECONDS = 1.0


def main(parent_pid: int, pid_fd: int, argv: list[str]) -> int:
    os.set_inheritable(pid_fd, False)
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    wake_fd = _wake_on_signals()
    program = _start(argv)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _frame: _send(program, received))
    os.write(pid_fd, b"%d\n" % program)
    os.close(pid_fd)
    status: int | None = None
    while status is None and _parent_lives(parent_pid, wake_fd):
        status = _reap(program)
    _end_group(program)
    return _end_descendants(program, status)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def _wake_on_signals() -> int:
    """A file descriptor that becomes readable when a signal, the end of a child included, has come in."""
    wake_fd, written_by_signals = os.pipe()
    os.set_blocking(written_by_signals, False)
    signal.set_wakeup_fd(written_by_signals, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda _received, _frame: None)
    return wake_fd


def _start(argv: list[str]) -> int:
    guard = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == guard:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.execvp(argv[0], argv)  # noqa: S606 - the caller's own program, given as a list
    except OSError as error:
        os.write(2, f"cannot run {argv[0]}: {error}\n".encode())
    os._exit(127)


def _parent_lives(parent_pid: int, wake_fd: int) -> bool:
    """Wait for a signal or for the parent's end.

    The parent's id is looked at too: a fork of the parent that never calls exec keeps the pipe open.
    """
    readable, _, _ = select.select([0, wake_fd], [], [], PARENT_CHECK_SECONDS)
    if wake_fd in readable:
        os.read(wake_fd, 4096)
    return 0 not in readable and os.getppid() == parent_pid


def _reap(program: int) -> int | None:
    """Collect every child that has ended; the program's exit status once it is among them."""
    status = None
    try:
        while True:
            pid, wait_status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return status
            if pid == program:
                status = os.waitstatus_to_exitcode(wait_status)
    except ChildProcessError:
        return status


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _end_group(program: int) -> None:
    try:
        os.killpg(program, signal.SIGKILL)
    except ProcessLookupError:
        return


def _end_descendants(program: int, status: int | None) -> int:
    """Kill until no child is left: what loses its parent becomes ours, so this reaches the whole tree."""
    while True:
        for pid in children_of(os.getpid()):
            _send(pid, signal.SIGKILL)
        try:
            pid, wait_status = os.waitpid(-1, 0)
        except ChildProcessError:
            break
        if pid == program:
            status = os.waitstatus_to_exitcode(wait_status)
    code = -signal.SIGKILL if status is None else status
    return code if code >= 0 else 128 - code


def children_of(parent_pid: int) -> dict[int, str]:
    """Process id and state (`R`, `S`, `Z` … as in proc(5)) of every child."""
    children = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):  # it ended just now, and there is nothing to read
            # 4711 (a name, which may hold anything) S 4710 …
            state, parent = stat.read_text(errors="replace").rpartition(")")[2].split()[:2]
            if int(parent) == parent_pid:
                children[int(stat.parent.name)] = state
    return children


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
