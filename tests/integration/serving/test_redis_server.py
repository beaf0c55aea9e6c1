"""A real redis-server: started, killed, stopped, and started again on what it has kept."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
import redis

from serving.errors import OperatorError
from serving.redis_server import RedisServer
from tests.support.ports import free_ports
from tests.support.waiting import eventually

Start = Callable[[], RedisServer]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    (port,) = free_ports(1)
    with ExitStack() as stack:

        def start_server() -> RedisServer:
            server = RedisServer(port=port, directory=tmp_path / "redis")
            stack.callback(server.stop)
            return server.start()

        yield start_server


def client(server: RedisServer) -> redis.Redis:
    return redis.Redis.from_url(server.url, socket_timeout=5.0)


def pid_of(server: RedisServer) -> int:
    with client(server) as connection:
        return int(connection.info("server")["process_id"])


def test_it_answers_on_the_loopback_interface_until_it_is_stopped(start: Start) -> None:
    server = start()
    process = psutil.Process(pid_of(server))
    listeners = [each for each in process.net_connections("inet") if each.status == psutil.CONN_LISTEN]

    assert server.answers()
    assert {each.laddr.ip for each in listeners} == {"127.0.0.1"}
    server.stop()
    assert not server.answers()
    assert not process.is_running()


def test_what_was_written_is_there_after_a_stop(start: Start) -> None:
    first = start()
    with client(first) as connection:
        connection.set("kept", "yes")
    first.stop()

    with client(start()) as connection:
        assert connection.get("kept") == b"yes"


def test_what_it_has_answered_is_there_after_a_kill(start: Start) -> None:
    server = start()
    killed = pid_of(server)
    with client(server) as connection:
        for number in range(100):
            connection.set("latest", number)
        os.kill(killed, signal.SIGKILL)

    assert eventually(lambda: not psutil.pid_exists(killed) and server.answers())
    with client(server) as connection:
        assert connection.get("latest") == b"99"
        assert connection.config_get("appendfsync") == {"appendfsync": "always"}


def test_it_forgets_nothing_to_make_room(start: Start) -> None:
    with client(start()) as connection:
        connection.set("kept", "yes", ex=3600)
        connection.config_set("maxmemory", "1")

        with pytest.raises(redis.OutOfMemoryError):
            connection.set("more", "no")

        assert connection.get("kept") == b"yes"


def test_it_is_full_before_the_machine_is(start: Start) -> None:
    with client(start()) as connection:
        assert int(connection.info("memory")["maxmemory"]) == 1 << 30
        assert connection.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}


def test_killed_it_comes_back(start: Start) -> None:
    server = start()
    killed = pid_of(server)

    os.kill(killed, signal.SIGKILL)

    assert eventually(lambda: not psutil.pid_exists(killed) and server.answers())
    assert pid_of(server) != killed


def test_what_it_cannot_read_is_quoted(tmp_path: Path) -> None:
    appended = tmp_path / "redis" / "appendonlydir"
    appended.mkdir(parents=True)
    (appended / "appendonly.aof.manifest").write_text("nonsense\n")
    (tmp_path / "redis" / "appendonly.aof").write_bytes(b"nonsense")
    server = RedisServer(port=free_ports(1)[0], directory=tmp_path / "redis")

    with pytest.raises(OperatorError, match=r"redis-server does not answer:\n(.*\n)*.*format"):
        server.start(timeout_seconds=1.5)

    assert not server.answers()
