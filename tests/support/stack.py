"""A whole stack as its user starts it, in a process of its own, on free ports; and nothing of it left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.leftovers import RunProcesses
from tests.support.ports import free_ports

ROOT = Path(__file__).parents[2]
COMMAND = Path(sys.executable).parent / "visiongate"
UP = (str(COMMAND), "up")
START_TIMEOUT_SECONDS = 120
STOP_TIMEOUT_SECONDS = 60
GONE_AFTER_KILL_WITHIN_SECONDS = 90
PORTS = (
    "PORT",
    "REPLICA_PORT",
    "HAPROXY_METRICS_PORT",
    "HAPROXY_STATS_PORT",
    "FALLBACK_PROXY_PORT",
    "METRICS_PORT",
    "METER_METRICS_PORT",
    "DASHBOARD_PORT",
    "TRITON_HTTP_PORT",
    "TRITON_GRPC_PORT",
    "TRITON_METRICS_PORT",
    "REDIS_PORT",
)


@dataclass(frozen=True)
class Stack:
    """`described` is what gateway.json says."""

    process: subprocess.Popen[str]
    run_directory: Path
    environment: Mapping[str, str]
    described: Mapping[str, Any]

    @property
    def url(self) -> str:
        return str(self.described["url"])

    @property
    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.described['api_key']}"}

    def command(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """`visiongate …`, against this stack."""
        return subprocess.run(
            [COMMAND, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def logs(self) -> str:
        return "".join(path.read_text() for path in sorted((self.run_directory / "logs").glob("*.jsonl")))


def environment(run_directory: Path, **settings: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("VISIONGATE_")}
    ports = dict(zip(PORTS, map(str, free_ports(len(PORTS))), strict=True))
    ours = {
        **ports,
        "RUN_DIRECTORY": str(run_directory),
        "MODEL_REPOSITORY": str(ROOT / "model_repo"),
        **settings,
    }
    # As wide as a terminal may be, so that no table is folded.
    return inherited | {"COLUMNS": "200"} | {f"VISIONGATE_{name}": value for name, value in ours.items()}


@contextmanager
def started(
    run_directory: Path, *, command: Sequence[str] = UP, killed: bool = False, **settings: str
) -> Iterator[tuple[subprocess.Popen[str], RunProcesses, dict[str, str]]]:
    """Only started: whatever is left of it at the end is removed, and fails the test.

    killed: the test ends it with SIGKILL; its folders stay, and Ray's agents first try for a minute to tell a
    server about it that has gone with it.
    """
    run_directory.mkdir(parents=True, exist_ok=True)
    variables = environment(run_directory, **settings)
    with (run_directory / "output.txt").open("w") as sink:
        # As in a terminal, a session of its own: Ctrl-C goes to all of it, and to none of ours.
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=variables,
            stdout=sink,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
    processes = RunProcesses(process.pid, run_directory)
    try:
        yield process, processes, variables
    finally:
        if killed:
            left = processes.still_running(within_seconds=GONE_AFTER_KILL_WITHIN_SECONDS)
        else:
            left = processes.left_behind()
        processes.remove()
        process.wait()
    assert not left, f"left behind: {left}\n{output_of(run_directory)}"


@contextmanager
def running_stack(
    run_directory: Path,
    *,
    command: Sequence[str] = UP,
    stop_with: int = signal.SIGTERM,
    exit_status: int = 0,
    **settings: str,
) -> Iterator[Stack]:
    """Started, ready, and at the end stopped; fails if it leaves a process or a folder behind."""
    new = started(run_directory, command=command, killed=False, **settings)
    with new as (process, processes, variables):
        described = await_description(process, run_directory)
        processes.look()
        assert any(folder.is_dir() for folder in processes.scratch), "the scratch folder has another name now"
        try:
            yield Stack(process, run_directory, variables, described)
        finally:
            processes.look()
            stop(process, stop_with)
        assert process.returncode == exit_status, output_of(run_directory)


def stop(process: subprocess.Popen[str], number: int) -> None:
    """SIGINT as from a terminal, to the whole foreground group; others to the one process."""
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    process.wait(STOP_TIMEOUT_SECONDS)


def await_description(process: subprocess.Popen[str], run_directory: Path) -> Any:
    path = run_directory / "gateway.json"
    give_up = time.monotonic() + START_TIMEOUT_SECONDS
    while not path.exists():
        assert process.poll() is None, f"it ended:\n{output_of(run_directory)}"
        assert time.monotonic() < give_up, f"it did not start:\n{output_of(run_directory)}"
        time.sleep(0.1)
    return json.loads(path.read_text())


def output_of(run_directory: Path) -> str:
    return (run_directory / "output.txt").read_text()
