"""The connection on real servers that are frozen, killed, full, read-only, or have moved away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from serving.adapters.redis.client import RedisConnection
from serving.adapters.redis.scripts import Script
from serving.errors import AccountsTrouble, AccountsUnavailable, OperatorError
from serving.metrics import Metrics
from tests.support.forwarder import Forwarder, forwarding
from tests.support.ports import free_ports
from tests.support.redis import KINDS, RedisProcess, cluster_client, program, running_cluster, running_redis

ECHO = Script("echo", "return {KEYS[1], ARGV[1]}")
WRITE = Script("write", "return redis.call('SET', KEYS[1], ARGV[1])")
QUICK_SECONDS = 0.3
LONG_SECONDS = 10.0


@asynccontextmanager
async def connected(
    url: SecretStr, *, timeout_seconds: float = LONG_SECONDS, max_waiting_calls: int = 4096
) -> AsyncIterator[RedisConnection]:
    connection = RedisConnection(
        url,
        timeout_seconds=timeout_seconds,
        metrics=Metrics(CollectorRegistry()),
        max_waiting_calls=max_waiting_calls,
    )
    try:
        yield connection
    finally:
        await connection.close()


async def failure(connection: RedisConnection, script: Script = WRITE, **options: Any) -> AccountsTrouble:
    """Why a call fails, which has to be counted by that reason."""
    with pytest.raises(AccountsUnavailable) as caught:
        await connection.run(script, ["{0}"], [1], **options)
    reason = caught.value.reason
    counted = connection.metrics.registry.get_sample_value(
        "visiongate_accounts_failures_total", {"reason": reason}
    )
    assert counted is not None
    return reason


@pytest.fixture(scope="module", params=KINDS)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RedisProcess]:
    with running_redis(request.param, tmp_path_factory.mktemp(request.param)) as process:
        yield process


@pytest.fixture
def client(server: RedisProcess) -> Iterator[redis.Redis]:
    """The server, with nothing in it, as it was started."""
    with server.client() as made:
        made.flushall()
        yield made
        made.config_set("maxmemory", 0)
        made.config_set("min-replicas-to-write", 0)
        made.replicaof("NO", "ONE")


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[RedisProcess]:
    with running_redis("redis-7", tmp_path) as process:
        yield process


async def test_calls_get_their_own_replies(server: RedisProcess) -> None:
    async with connected(server.url) as connection:
        replies = await asyncio.gather(*(connection.run(ECHO, [f"{n}"], [-n]) for n in range(500)))

    assert replies == [[f"{n}".encode(), f"{-n}".encode()] for n in range(500)]


async def test_calls_of_one_turn_are_one_message(server: RedisProcess, client: redis.Redis) -> None:
    def messages() -> int:
        return int(client.info("stats")["total_reads_processed"])

    async with connected(server.url) as connection:
        await connection.run(ECHO, ["0"], [0])
        before = messages()
        await asyncio.gather(*(connection.run(ECHO, [f"{n}"], [n]) for n in range(50)))

        assert messages() - before == 2  # the calls, and the question


async def test_a_script_that_redis_has_forgotten_is_told_again(
    server: RedisProcess, client: redis.Redis
) -> None:
    async with connected(server.url) as connection:
        for _ in range(2):
            written, echoed = await asyncio.gather(
                connection.run(WRITE, ["{0}"], ["a"]), connection.run(ECHO, ["{0}"], ["b"])
            )
            assert (written, echoed) == (b"OK", [b"{0}", b"b"])
            client.script_flush()

    assert client.get("{0}") == b"a"


def _fill(client: redis.Redis) -> None:
    client.config_set("maxmemory", 1)


def _make_read_only(client: redis.Redis) -> None:
    client.replicaof("127.0.0.1", str(free_ports(1)[0]))


def _ask_for_replicas(client: redis.Redis) -> None:
    client.config_set("min-replicas-to-write", 1)


@pytest.mark.parametrize(
    ("make_trouble", "reason"),
    [(_fill, "full"), (_make_read_only, "read_only"), (_ask_for_replicas, "failing_over")],
)
async def test_what_redis_refuses_has_its_reason(
    server: RedisProcess,
    client: redis.Redis,
    make_trouble: Callable[[redis.Redis], None],
    reason: AccountsTrouble,
) -> None:
    async with connected(server.url) as connection:
        make_trouble(client)

        assert await failure(connection) == reason


async def test_a_broken_script_fails_alone(server: RedisProcess) -> None:
    broken = Script("broken", "return redis.call('NO SUCH COMMAND')")
    async with connected(server.url) as connection:
        reason, reply = await asyncio.gather(
            failure(connection, broken), connection.run(ECHO, ["0"], ["well"])
        )

    assert reason == "other"
    assert reply == [b"0", b"well"]


async def test_a_frozen_redis_is_slow_and_then_well_again(own_server: RedisProcess) -> None:
    async with connected(own_server.url, timeout_seconds=QUICK_SECONDS) as connection:
        await connection.run(WRITE, ["{0}"], [1])
        own_server.freeze()
        reasons = await asyncio.gather(*(failure(connection) for _ in range(300)))
        assert set(reasons) == {"slow"}

        own_server.thaw()

        assert await connection.run(ECHO, ["0"], ["late"]) == [b"0", b"late"]


async def test_a_killed_redis_is_down_and_then_well_again(own_server: RedisProcess) -> None:
    async with connected(own_server.url) as connection:
        await asyncio.gather(*(connection.run(WRITE, ["{0}"], [1]) for _ in range(200)))
        own_server.kill()
        assert {await failure(connection) for _ in range(3)} == {"down"}

        own_server.start()

        assert await connection.run(WRITE, ["{0}"], [1]) == b"OK"


@pytest.fixture
async def door(own_server: RedisProcess) -> AsyncIterator[Forwarder]:
    """To its own server; it tells when a call is on its way."""
    async with forwarding(own_server.port) as forwarder:
        yield forwarder


async def test_a_redis_that_is_killed_under_a_call_is_down(own_server: RedisProcess, door: Forwarder) -> None:
    async with connected(door.redis_url) as connection:
        await connection.run(WRITE, ["{0}"], [1])
        own_server.freeze()
        call = asyncio.create_task(failure(connection))
        await door.until_something_was_sent()

        own_server.kill()

        assert await call == "down"


async def test_more_calls_than_may_wait_are_turned_away(own_server: RedisProcess) -> None:
    async with connected(own_server.url, max_waiting_calls=2) as connection:
        replies = await asyncio.gather(
            *(connection.run(ECHO, ["0"], [n]) for n in range(3)), return_exceptions=True
        )

    assert replies[:2] == [[b"0", b"0"], [b"0", b"1"]]
    assert isinstance(replies[2], AccountsUnavailable)
    assert replies[2].reason == "slow"


async def test_who_leaves_is_told_of_only_where_it_ran(own_server: RedisProcess, door: Forwarder) -> None:
    ran: list[str] = []
    async with connected(door.redis_url) as connection:
        await connection.run(WRITE, ["{0}"], [0])
        own_server.freeze()
        leave = {
            WRITE: lambda: ran.append("write"),
            Script("broken", "return redis.call('NO SUCH COMMAND')"): lambda: ran.append("broken"),
        }
        left = [
            asyncio.create_task(connection.run(script, ["{0}"], [1], if_abandoned=note))
            for script, note in leave.items()
        ]
        stays = asyncio.create_task(
            connection.run(ECHO, ["{0}"], [2], if_abandoned=lambda: ran.append("echo"))
        )
        await door.until_something_was_sent()
        for call in left:
            call.cancel()
        own_server.thaw()
        await stays

    assert ran == ["write"]


async def test_who_leaves_before_anything_is_sent_sends_nothing(
    own_server: RedisProcess,
) -> None:
    async with connected(own_server.url) as connection:
        await connection.run(WRITE, ["{0}"], ["before"])
        call = asyncio.create_task(connection.run(WRITE, ["{0}"], ["after"]))
        asyncio.get_running_loop().call_soon(call.cancel)
        await asyncio.gather(call, return_exceptions=True)

        assert await connection.run(Script("read", "return redis.call('GET', KEYS[1])"), ["{0}"]) == b"before"


async def test_closing_fails_what_is_under_way(own_server: RedisProcess, door: Forwarder) -> None:
    async with connected(door.redis_url) as connection:
        await connection.run(WRITE, ["{0}"], [0])
        own_server.freeze()
        calls = [asyncio.create_task(failure(connection)) for _ in range(1000)]
        await door.until_something_was_sent()  # some are on their way, the rest wait

        await connection.close()

        assert set(await asyncio.gather(*calls)) == {"down"}


async def test_a_reply_counts_once_the_replicas_have_it(own_server: RedisProcess, tmp_path: Path) -> None:
    copies = ("--replicaof", "127.0.0.1", str(own_server.port), "--repl-diskless-load", "on-empty-db")
    with own_server.client() as client:
        client.config_set("repl-diskless-sync-delay", 0)
    with running_redis("redis-7", tmp_path / "replica", *copies) as replica, replica.client() as copy:
        with own_server.client() as client:
            assert client.set("{0}", "first")
            assert client.execute_command("WAIT", 1, 4000) == 1  # the replica has caught up
        async with connected(own_server.url, timeout_seconds=1) as connection:
            assert await connection.run(WRITE, ["{0}"], ["copied"], replicas=1) == b"OK"
            assert copy.get("{0}") == b"copied"
            replica.freeze()

            reason, reply = await asyncio.gather(
                failure(connection, replicas=1), connection.run(ECHO, ["{0}"], ["needs none"])
            )

            assert reason == "failing_over"
            assert reply == [b"{0}", b"needs none"]


async def test_a_unix_socket_will_do(tmp_path: Path) -> None:
    path = f"/tmp/vg_{free_ports(1)[0]}.sock"  # a socket's path may have 107 characters
    server = RedisProcess(program("redis-7"), tmp_path, "--unixsocket", path)
    server.start()
    try:
        async with connected(SecretStr(f"unix://{path}")) as connection:
            assert await connection.run(ECHO, ["0"], ["here"]) == [b"0", b"here"]
    finally:
        server.stop()


@pytest.mark.parametrize("url", ["", "hunter2", "http://:hunter2@host", "redis://:hunter2@host:port/0"])
def test_another_url_is_refused_without_being_quoted(url: str) -> None:
    with pytest.raises(OperatorError, match="VISIONGATE_REDIS_URL") as caught:
        RedisConnection(SecretStr(url), timeout_seconds=1, metrics=Metrics(CollectorRegistry()))

    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_slots_of_a_cluster_are_followed_where_they_go(tmp_path: Path) -> None:
    with running_cluster(tmp_path) as url, cluster_client(url) as cluster:
        async with connected(url, timeout_seconds=2) as connection:
            names = [f"{{{number}}}" for number in range(16)]
            await asyncio.gather(*(connection.run(WRITE, [name], ["there"]) for name in names))
            for name in names:
                _move_slot(cluster, name)

            replies = await asyncio.gather(*(connection.run(WRITE, [name], ["moved"]) for name in names))

            assert replies == [b"OK"] * 16
            _move_slot(cluster, "{0}")
            assert await failure(connection, replicas=1) == "failing_over"


def _move_slot(cluster: Any, name: str) -> None:
    """To another node, while nothing is in it. cluster: a `redis.RedisCluster`, which has few types."""
    cluster.delete(name)
    slot, source = cluster.keyslot(name), cluster.get_node_from_key(name)
    target = next(node for node in cluster.get_primaries() if node != source)
    target_id = cluster.execute_command("CLUSTER MYID", target_nodes=target).decode()
    for node in (target, source):
        cluster.execute_command("CLUSTER SETSLOT", slot, "NODE", target_id, target_nodes=node)
    cluster.nodes_manager.initialize()
