from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from serving.adapters import usage_codec
from serving.adapters.redis import keyspace
from serving.adapters.redis.client import RedisConnection
from serving.adapters.redis.pulse import PulseTaker, StreamId, stream_id
from serving.adapters.redis.retained import StreamEntries
from serving.adapters.redis.stream import Handled, RedisUsageStream
from serving.errors import AccountsUnavailable
from serving.metrics import Metrics
from tests.support.redis import Client, RedisProcess, prime, running_redis
from tests.support.usage_events import make_event

KEY = "key_1"
PARTITION = keyspace.partition_of(KEY)


@pytest.fixture(params=["redis-6.2", "redis-7"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisProcess]:
    with running_redis(request.param, tmp_path / "redis") as process:
        yield process


@pytest.fixture
def client(server: RedisProcess) -> Iterator[Client]:
    with server.client() as client:
        prime(client)
        yield client


@pytest.fixture
async def connection(server: RedisProcess) -> AsyncIterator[RedisConnection]:
    metrics = Metrics(CollectorRegistry())
    connection = RedisConnection(server.url, timeout_seconds=10.0, metrics=metrics)
    yield connection
    await connection.close()


def append(client: Client, request_id: str) -> StreamId:
    data = usage_codec.encode(make_event(request_id, key_id=KEY))
    return stream_id(client.xadd(keyspace.usage_stream(PARTITION), {"e": data}))


async def test_it_says_which_entries_the_ledger_has(client: Client, connection: RedisConnection) -> None:
    pulses, stream = PulseTaker(connection), RedisUsageStream(connection, consumer="one")

    async def consumed_below() -> StreamId:
        return (await pulses.take())[PARTITION].consumed_below

    assert await consumed_below() == (0, 1)  # there never was an entry
    first, second = append(client, "req_1"), append(client, "req_2")
    assert await consumed_below() == first
    entries = (await stream.read()).entries
    assert await consumed_below() == first  # handed out is not acknowledged
    await stream.acknowledge([Handled(entries[0], "new")])
    assert await consumed_below() == second
    await stream.acknowledge([Handled(entries[1], "new")])
    below = await consumed_below()
    assert second < below
    assert below <= append(client, "req_3")


async def test_it_says_which_epoch_and_server_answered(
    server: RedisProcess, client: Client, connection: RedisConnection
) -> None:
    pulses = PulseTaker(connection)
    before = await pulses.take()
    assert [pulse.partition for pulse in before] == list(range(keyspace.PARTITIONS))
    assert {pulse.epoch for pulse in before} == {"epoch-1"}
    client.delete(keyspace.epoch(PARTITION))
    assert [pulse.partition for pulse in await pulses.take() if pulse.epoch is None] == [PARTITION]
    assert not client.exists(keyspace.epoch(PARTITION))  # looking is not priming
    assert {pulse.server for pulse in await pulses.take()} == {pulse.server for pulse in before}
    server.kill()
    server.start()
    assert not {pulse.server for pulse in await pulses.take()} & {pulse.server for pulse in before}


@pytest.mark.parametrize(
    ("begin", "reason"),
    [
        (lambda client: client.config_set("maxmemory", 1), "full"),
        (lambda client: client.execute_command("REPLICAOF", "127.0.0.1", "1"), "read_only"),
    ],
    ids=["full", "read-only"],
)
async def test_a_server_that_takes_no_writes_has_no_pulse(
    client: Client, connection: RedisConnection, begin: Callable[[Client], object], reason: str
) -> None:
    begin(client)
    with pytest.raises(AccountsUnavailable) as caught:
        await PulseTaker(connection).take()
    assert caught.value.reason == reason


async def test_a_replica_that_is_asked_for_and_missing_is_trouble(
    server: RedisProcess, client: Client
) -> None:
    metrics = Metrics(CollectorRegistry())
    connection = RedisConnection(server.url, timeout_seconds=0.5, metrics=metrics)
    await PulseTaker(connection).take()  # the script is there
    with pytest.raises(AccountsUnavailable) as caught:
        await PulseTaker(connection, replicas=1).take()
    assert caught.value.reason == "failing_over"
    await connection.close()


async def test_entries_that_are_not_there_are_told(client: Client, connection: RedisConnection) -> None:
    first, second = append(client, "req_1"), append(client, "req_2")
    other = (first[0] - 1, 0)
    entries = StreamEntries(connection)
    assert await entries.absent(PARTITION, [first, other, second]) == {other}
    assert await entries.absent((PARTITION + 1) % 16, [first]) == {first}
