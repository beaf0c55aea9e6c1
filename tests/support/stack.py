"""A whole stack as its user starts it: `visiongate up` in a process of its own, on free ports."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
COMMAND = Path(sys.executable).parent / "visiongate"
START_TIMEOUT_SECONDS = 120
STOP_TIMEOUT_SECONDS = 60
PORT_RANGE = range(20_000, 29_000)
PORTS = (
    "PORT",
    "REPLICA_PORT",
    "HAPROXY_METRICS_PORT",
    "HAPROXY_STATS_PORT",
    "FALLBACK_PROXY_PORT",
    "METRICS_PORT",
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


def free_ports(count: int) -> list[int]:
    """From a range that neither the system nor Ray hands out, so that they stay free until they are used."""
    return list(islice(filter(_is_free, random.sample(PORT_RANGE, len(PORT_RANGE))), count))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


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
def running_stack(
    run_directory: Path, *, stop_with: int = signal.SIGTERM, **settings: str
) -> Iterator[Stack]:
    """Started, ready, and at the end stopped; fails if it leaves a process behind."""
    variables = environment(run_directory, **settings)
    output = run_directory / "output.txt"
    run_directory.mkdir(parents=True, exist_ok=True)
    with output.open("w") as sink:
        process = subprocess.Popen(
            [COMMAND, "up"], env=variables, stdout=sink, stderr=subprocess.STDOUT, text=True
        )
        try:
            described = _await_description(process, run_directory / "gateway.json", output)
            yield Stack(process, run_directory, variables, described)
        finally:
            descendants = _descendants(process)
            process.send_signal(stop_with)
            try:
                process.wait(STOP_TIMEOUT_SECONDS)
            finally:
                _, slow = psutil.wait_procs(descendants, timeout=5)
                left = [child for child in slow if _lives(child)]
                for child in left:
                    child.kill()
                process.kill()
    assert not left, f"left behind: {left}\n{output.read_text()}"
    assert process.returncode == 0, output.read_text()


def _await_description(process: subprocess.Popen[str], path: Path, output: Path) -> Any:
    give_up = time.monotonic() + START_TIMEOUT_SECONDS
    while not path.exists():
        assert process.poll() is None, f"it ended:\n{output.read_text()}"
        assert time.monotonic() < give_up, f"it did not start:\n{output.read_text()}"
        time.sleep(0.1)
    return json.loads(path.read_text())


def _descendants(process: subprocess.Popen[str]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _lives(child: psutil.Process) -> bool:
    try:
        return child.is_running() and child.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
