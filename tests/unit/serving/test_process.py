"""Real programs under real supervision: what is promised about their end is only true of real processes."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from serving.errors import OperatorError
from serving.process import Backoff, ManagedProcess
from tests.support.waiting import eventually

LOGGER = logging.getLogger("tests.program")

UNTIL_KILLED = "import signal; print('up', flush=True); signal.pause()"
DEAF_TO_SIGTERM = (
    "import signal; signal.signal(15, signal.SIG_IGN); print('up', flush=True)\nwhile True: signal.pause()"
)
WITH_CHILDREN = """
import os, signal, subprocess, sys
sleeper = [sys.executable, '-c', 'import signal; signal.pause()']
children = [subprocess.Popen(sleeper), subprocess.Popen(sleeper, start_new_session=True)]
print('children', *[child.pid for child in children], flush=True)
signal.pause()
"""


def is_gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def python(code: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code]


def at_once(stopping: threading.Event, _seconds: float) -> bool:
    return stopping.is_set()


@pytest.fixture
def supervise(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[..., ManagedProcess]]:
    caplog.set_level(logging.DEBUG, LOGGER.name)
    with contextlib.ExitStack() as stack:

        def start(code: str, **options: object) -> ManagedProcess:
            process = ManagedProcess("program", python(code), logger=LOGGER, **options)  # type: ignore[arg-type]  # each test names the options that it is about
            return stack.enter_context(process)

        yield start


def printed(process: ManagedProcess, text: str) -> bool:
    return eventually(lambda: text in process.last_lines())


def children_of(process: ManagedProcess) -> list[int]:
    assert printed(process, "children ")
    line = next(line for line in process.last_lines().splitlines() if line.startswith("children "))
    return [int(word) for word in line.split()[1:]]


def test_a_program_that_does_not_exist_is_an_operator_error(tmp_path: Path) -> None:
    process = ManagedProcess("program", [tmp_path / "nowhere"], logger=LOGGER)

    with pytest.raises(OperatorError, match=r"program: .*nowhere is not a program"):
        process.start()
    process.stop()


def test_each_line_of_both_streams_becomes_a_record_of_the_level_asked_for(
    supervise: Callable[..., ManagedProcess], caplog: pytest.LogCaptureFixture
) -> None:
    code = "import os, signal; os.write(1, b'one\\n\\n'); os.write(2, b'E two\\xff\\nand'); signal.pause()"
    process = supervise(code, level_of=lambda line: logging.ERROR if line.startswith("E") else logging.DEBUG)

    assert printed(process, "E two")
    process.stop()
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.DEBUG, "one"),
        (logging.ERROR, "E two\ufffd"),
        (logging.DEBUG, "and"),
    ]


def test_only_the_last_lines_are_kept_and_an_endless_line_is_cut(
    supervise: Callable[..., ManagedProcess],
) -> None:
    process = supervise("print('x' * 1_000_000)\nfor i in range(100): print('line', i)\n" + UNTIL_KILLED)

    assert printed(process, "up")
    lines = process.last_lines().splitlines()
    assert len(lines) == 40
    assert lines[-2:] == ["line 99", "up"]
    assert max(map(len, lines)) <= 8192


def test_env_is_what_is_given(supervise: Callable[..., ManagedProcess]) -> None:
    process = supervise("import os; print(os.environ['WORD']);" + UNTIL_KILLED, env={"WORD": "given"})

    assert printed(process, "given")


def test_it_has_a_session_of_its_own_so_that_ctrl_c_reaches_us_alone(
    supervise: Callable[..., ManagedProcess],
) -> None:
    process = supervise(UNTIL_KILLED)

    assert process.pid is not None
    assert eventually(lambda: os.getsid(process.pid or 0) == process.pid)


@pytest.mark.parametrize(
    ("failures", "seconds"),
    [(1, 0.5), (2, 1.0), (3, 2.0), (4, 3.0), (10_000, 3.0)],
)
def test_backoff_doubles_up_to_its_cap(failures: int, seconds: float) -> None:
    backoff = Backoff(initial_seconds=0.5, cap_seconds=3.0, healthy_after_seconds=60.0)

    assert backoff.delay_seconds(failures) == seconds


def test_a_program_that_keeps_dying_is_started_again_ever_more_slowly(
    supervise: Callable[..., ManagedProcess], caplog: pytest.LogCaptureFixture
) -> None:
    waits: list[float] = []

    def record(stopping: threading.Event, seconds: float) -> bool:
        waits.append(seconds)
        return len(waits) == 4 or stopping.is_set()

    starts: list[int] = []
    process = supervise(
        "import sys; sys.exit(3)",
        wait=record,
        monotonic=lambda: 0.0,
        backoff=Backoff(initial_seconds=1.0, cap_seconds=3.0),
        before_start=lambda: starts.append(1),
    )

    assert eventually(lambda: len(waits) == 4)
    assert waits == [1.0, 2.0, 3.0, 3.0]
    assert len(starts) == 4
    assert process.restarts == 4
    assert "program ended with status 3; starting it again in 1.00 s" in caplog.text


def test_a_long_good_run_forgets_the_failures_before_it(supervise: Callable[..., ManagedProcess]) -> None:
    waits: list[float] = []
    clock = iter(range(0, 10_000, 100))

    def record(stopping: threading.Event, seconds: float) -> bool:
        waits.append(seconds)
        return len(waits) == 3 or stopping.is_set()

    supervise(
        "pass",
        wait=record,
        monotonic=lambda: float(next(clock)),
        backoff=Backoff(initial_seconds=1.0, healthy_after_seconds=60.0),
    )

    assert eventually(lambda: len(waits) == 3)
    assert waits == [1.0, 1.0, 1.0]


def test_a_killed_program_runs_again_under_a_new_id(supervise: Callable[..., ManagedProcess]) -> None:
    process = supervise(UNTIL_KILLED, wait=at_once)
    assert printed(process, "up")
    first = process.pid
    assert first is not None

    os.kill(first, signal.SIGKILL)

    assert eventually(lambda: process.restarts == 1 and process.pid not in (None, first))


def test_its_children_do_not_outlive_it_even_in_sessions_of_their_own(
    supervise: Callable[..., ManagedProcess],
) -> None:
    process = supervise(WITH_CHILDREN, wait=lambda stopping, _seconds: stopping.wait(30))
    children = children_of(process)

    os.kill(process.pid or 0, signal.SIGKILL)

    assert eventually(lambda: all(is_gone(pid) for pid in children))


def test_an_unhealthy_program_is_killed_and_started_again(supervise: Callable[..., ManagedProcess]) -> None:
    asked_of: list[int] = []

    def is_healthy(pid: int) -> bool:
        asked_of.append(pid)
        return len(asked_of) > 1

    process = supervise(DEAF_TO_SIGTERM, wait=at_once, is_healthy=is_healthy)
    first = process.pid

    assert eventually(lambda: process.restarts == 1 and process.pid not in (None, first))
    assert asked_of[0] == first


def test_killing_the_guard_is_one_more_way_for_the_program_to_die(
    supervise: Callable[..., ManagedProcess],
) -> None:
    process = supervise(UNTIL_KILLED, wait=at_once)
    assert printed(process, "up")
    program = process.pid
    guard = psutil.Process(program).ppid()

    os.kill(guard, signal.SIGKILL)

    assert eventually(lambda: process.restarts == 1 and process.pid not in (None, program))
    assert is_gone(program or 0)


@pytest.mark.parametrize("code", [UNTIL_KILLED, DEAF_TO_SIGTERM, WITH_CHILDREN])
def test_stop_leaves_nothing_and_starts_nothing(supervise: Callable[..., ManagedProcess], code: str) -> None:
    process = supervise(code, stop_timeout_seconds=0.5)
    assert eventually(lambda: bool(process.last_lines()))
    tree = [process.pid or 0, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]

    process.stop()
    process.stop()

    assert process.pid is None
    assert process.restarts == 0
    assert all(is_gone(pid) for pid in tree)
    assert not [thread for thread in threading.enumerate() if "program" in thread.name]


def test_stop_while_waiting_to_start_again_returns_at_once(supervise: Callable[..., ManagedProcess]) -> None:
    process = supervise("pass", backoff=Backoff(initial_seconds=600.0, cap_seconds=600.0))
    assert eventually(lambda: process.restarts == 1)

    process.stop()

    assert process.pid is None


OWNER = f"""
import logging, sys, threading
from serving.process import ManagedProcess
argv = [sys.executable, "-I", "-S", "-c", {WITH_CHILDREN!r}]
process = ManagedProcess("program", argv, logger=logging.getLogger())
# From a thread that ends at once: what ties a program to a thread instead of a process would end it here.
starter = threading.Thread(target=process.start); starter.start(); starter.join()
pause = threading.Event()
while "children" not in process.last_lines():
    pause.wait(0.01)
print(process.pid, *process.last_lines().split()[1:], flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("end", ["kill -9", "exit without stop"])
def test_when_we_end_everything_ends(end: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdin is not None
        assert owner.stdout is not None
        pids = [int(word) for word in owner.stdout.readline().split()]
        assert len(pids) == 3
        assert not any(is_gone(pid) for pid in pids)

        if end == "kill -9":
            owner.kill()
        owner.stdin.close()
        owner.wait(10)

    assert eventually(lambda: all(is_gone(pid) for pid in pids))
