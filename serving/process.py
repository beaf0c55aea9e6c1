"""One supervised program: started, its output logged, started again when it dies unasked, stopped for good.

Nothing of it outlives us, however we end; `process_guard.py` sees to that and says how.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self, cast

from serving import process_guard
from serving.errors import OperatorError

LevelOf = Callable[[str], int]
"""The `logging` level of one line of a program's output."""

Wait = Callable[[threading.Event, float], bool]
"""Wait for the event at most so many seconds; whether it is set. `threading.Event.wait`, but for tests."""

_TAIL_LINES = 40
_LINE_BYTES = 8192
_KILL_SECONDS = 10.0
_HEALTH_CHECK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before each new start: doubling, capped, and forgotten after a good long run."""

    initial_seconds: float = 0.25
    cap_seconds: float = 15.0
    healthy_after_seconds: float = 60.0

    def delay_seconds(self, failures_in_a_row: int) -> float:
        """For 1, 2, 3 … failures."""
        return min(self.cap_seconds, self.initial_seconds * 2.0 ** min(failures_in_a_row - 1, 32))


class ManagedProcess:
    """One program under supervision. Give it its own logger: each line of its output becomes a record.

    before_start: called before every start, for what the last run may have left behind.
    is_healthy: asked every second, with the program's process id; at a no it is killed, and started again.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        logger: logging.Logger,
        env: Mapping[str, str] | None = None,
        level_of: LevelOf = lambda _line: logging.INFO,
        before_start: Callable[[], None] = lambda: None,
        is_healthy: Callable[[int], bool] = lambda _pid: True,
        stop_timeout_seconds: float = 10.0,
        backoff: Backoff | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        wait: Wait = threading.Event.wait,
    ) -> None:
        self.name = name
        self._argv = [str(part) for part in argv]
        self._logger = logger
        self._env = None if env is None else dict(env)
        self._level_of = level_of
        self._before_start = before_start
        self._is_healthy = is_healthy
        self._stop_timeout_seconds = stop_timeout_seconds
        self._backoff = backoff or Backoff()
        self._monotonic = monotonic
        self._wait = wait
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._stopping = threading.Event()
        self._run: _Run | None = None
        self._supervisor: threading.Thread | None = None
        self._restarts = 0

    @property
    def pid(self) -> int | None:
        """The program's own process id; None while it is not running."""
        run = self._run
        return run.pid or None if run is not None and run.is_alive() else None

    @property
    def restarts(self) -> int:
        """How often it died unasked, since `start`."""
        return self._restarts

    def last_lines(self) -> str:
        """The end of its output, for an error message."""
        return "\n".join(self._tail)

    def start(self) -> None:
        """Raises OperatorError where the program cannot be run at all."""
        if self._supervisor is not None:
            raise RuntimeError(f"{self.name} was started before; make a new ManagedProcess to run it again")
        if shutil.which(self._argv[0]) is None:
            raise OperatorError(f"{self.name}: {self._argv[0]} is not a program that can be run.")
        self._supervisor = threading.Thread(
            target=self._supervise, args=(self._launch(),), name=f"supervise-{self.name}", daemon=True
        )
        self._supervisor.start()

    def stop(self) -> None:
        """SIGTERM; after `stop_timeout_seconds` SIGKILL, to it and all below it. Twice is once."""
        self._stopping.set()
        if self._supervisor is not None:
            # The supervisor may be between two runs: it then sees the event, and starts no further one.
            while self._supervisor.is_alive():
                if (run := self._run) is not None:
                    run.end(self._stop_timeout_seconds)
                self._supervisor.join(0.05)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _supervise(self, first: _Run) -> None:
        run: _Run | None = first
        failures = 0
        while True:
            started = self._monotonic()
            ended = (
                "could not be started" if run is None else f"ended with status {run.wait(self._is_healthy)}"
            )
            self._run = None
            if self._stopping.is_set():
                return
            failures = (
                1 if self._monotonic() - started > self._backoff.healthy_after_seconds else failures + 1
            )
            delay = self._backoff.delay_seconds(failures)
            self._restarts += 1
            self._logger.error("%s %s; starting it again in %.2f s", self.name, ended, delay)
            if self._wait(self._stopping, delay):
                return
            run = self._launch_again()

    def _launch(self) -> _Run:
        self._before_start()
        self._run = _Run(self._argv, self._env, self._take_line, name=self.name)
        return self._run

    def _launch_again(self) -> _Run | None:
        """None where the machine has no room for another process just now."""
        try:
            return self._launch()
        except OSError:
            self._logger.exception("%s cannot be started", self.name)
            return None

    def _take_line(self, line: str) -> None:
        self._tail.append(line)
        self._logger.log(self._level_of(line), "%s", line)


class _Run:
    """One start of the program, from its first line of output to the end of its last descendant."""

    def __init__(
        self,
        argv: Sequence[str],
        env: Mapping[str, str] | None,
        take_line: Callable[[str], None],
        *,
        name: str,
    ) -> None:
        pid_read, pid_write = os.pipe()
        self._guard = subprocess.Popen(  # noqa: S603 - our own guard; the program is the caller's, as a list
            [sys.executable, "-I", "-S", process_guard.__file__, str(os.getpid()), str(pid_write), *argv],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(pid_write,),
            # Not ours, so that Ctrl-C reaches us alone and we stop things in order.
            start_new_session=True,
        )
        os.close(pid_write)
        with os.fdopen(pid_read, "rb") as report:
            self.pid = int(report.readline() or b"0")
        self._stdin = cast("IO[bytes]", self._guard.stdin)
        self._reader = threading.Thread(
            target=_read_lines, args=(self._guard.stdout, take_line), name=f"log-{name}", daemon=True
        )
        self._reader.start()

    def is_alive(self) -> bool:
        return self._guard.returncode is None

    def wait(self, is_healthy: Callable[[int], bool]) -> int:
        """Return the exit status, below zero for a signal, once all of it is gone and its output was read."""
        while (code := self._ended_within(_HEALTH_CHECK_SECONDS)) is None:
            if not is_healthy(self.pid):
                self._stdin.close()
        if code < 0 and self.pid:
            # Somebody killed the guard, and the kernel then the program: what is left is in its group.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        self._stdin.close()
        self._reader.join()
        return 128 - code if code > 128 else code

    def end(self, timeout_seconds: float) -> None:
        """Return when it has ended: asked politely at first, then not."""
        self._guard.terminate()
        if self._ended_within(timeout_seconds) is None:
            self._stdin.close()
            if self._ended_within(_KILL_SECONDS) is None:
                self._guard.kill()

    def _ended_within(self, seconds: float) -> int | None:
        try:
            return self._guard.wait(seconds)
        except subprocess.TimeoutExpired:
            return None


def _read_lines(stream: IO[bytes], take_line: Callable[[str], None]) -> None:
    with stream:
        while line := stream.readline(_LINE_BYTES):
            if text := line.decode(errors="replace").rstrip():
                take_line(text)
