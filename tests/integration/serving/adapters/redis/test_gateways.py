from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from serving.adapters.memory.clock import ManualClock
from serving.adapters.redis.client import RedisConnection
from serving.adapters.redis.gateways import ALIVE_SECONDS, LiveGateways
from serving.errors import AccountsUnavailable
from serving.metrics import Metrics
from tests.support.redis import RedisProcess, running_redis

MOVED = """
local function now_microseconds() return tonumber(redis.call('GET', 'clock')) end
"""


class Place:
    """Gateways on one Redis; its clock and theirs go together."""

    def __init__(self, server: RedisProcess, stack: AsyncExitStack) -> None:
        self.clock = ManualClock()
        self.server = server
        self._stack = stack
        self.advance(0)

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        with self.server.client() as client:
            client.set("clock", round(self.clock.now().timestamp() * 1_000_000))

    def gateway(self, *, expected: int = 1) -> LiveGateways:
        metrics = Metrics(CollectorRegistry())
        connection = RedisConnection(self.server.url, timeout_seconds=10.0, metrics=metrics)
        self._stack.push_async_callback(connection.close)
        return LiveGateways(connection, self.clock, expected=expected, redis_clock=MOVED)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisProcess]:
    with running_redis("redis-7", tmp_path / "redis") as process:
        yield process


@pytest.fixture
async def place(server: RedisProcess) -> AsyncIterator[Place]:
    async with AsyncExitStack() as stack:
        yield Place(server, stack)


async def test_all_that_beat_are_counted_by_each(place: Place) -> None:
    gateways = [place.gateway() for _ in range(3)]
    for _ in range(2):
        for gateway in gateways:
            await gateway.beat()
    assert [gateway.count for gateway in gateways] == [3, 3, 3]


async def test_one_that_is_gone_counts_no_more_after_a_while(place: Place) -> None:
    stays, leaves = place.gateway(), place.gateway()
    await leaves.beat()
    await stays.beat()
    place.advance(ALIVE_SECONDS)
    await stays.beat()
    assert stays.count == 2
    place.advance(ALIVE_SECONDS + 0.001)
    await stays.beat()
    place.advance(ALIVE_SECONDS + 0.001)
    await stays.beat()
    await stays.beat()
    assert stays.count == 2  # what was known before a silence holds for as long again
    for _ in range(3):
        place.advance(ALIVE_SECONDS / 2)
        await stays.beat()
    assert stays.count == 1


async def test_one_that_leaves_is_not_waited_for(place: Place) -> None:
    stays, leaves = place.gateway(), place.gateway()
    await leaves.beat()
    await leaves.leave()
    await stays.beat()
    assert stays.count == 1


async def test_until_redis_has_had_time_the_expected_ones_count(place: Place) -> None:
    gateway = place.gateway(expected=4)
    assert gateway.count == 4
    await gateway.beat()
    assert gateway.count == 4
    for _ in range(3):
        place.advance(ALIVE_SECONDS / 2)
        await gateway.beat()
    assert gateway.count == 1


async def test_without_redis_the_last_count_holds_also_when_it_comes_back_empty(place: Place) -> None:
    gateways = [place.gateway() for _ in range(2)]
    for _ in range(2):
        for gateway in gateways:
            await gateway.beat()
    place.server.kill()
    with pytest.raises(AccountsUnavailable):
        await gateways[0].beat()
    assert gateways[0].count == 2
    place.server.start()
    place.clock.advance(60)
    place.advance(0)
    await gateways[0].beat()
    assert gateways[0].count == 2
