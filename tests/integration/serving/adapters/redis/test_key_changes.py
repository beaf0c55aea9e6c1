"""Changed keys on their way through real Redis servers, and what a listener may believe when one is gone."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from serving.adapters.redis.client import RedisConnection
from serving.adapters.redis.key_changes import (
    PING_SECONDS,
    PONG_TIMEOUT_SECONDS,
    KeyChangeSubscription,
    RedisKeyChanges,
)
from serving.adapters.redis.keyspace import KEY_CHANGES
from serving.clock import SystemClock
from serving.domain.key_change import ChangedKeys
from serving.metrics import Metrics
from tests.support.redis import KINDS, RedisProcess, running_cluster, running_redis

Event = ChangedKeys | float | None
"""To forget, to confirm, or to forget all."""

PATIENCE_SECONDS = 20.0
ONE_KEY = ChangedKeys("ada", "key_1")
ALL_OF_ADA = ChangedKeys("ada")


class Listener:
    """Keeps in order what it was told."""

    def __init__(self) -> None:
        self._told: asyncio.Queue[Event] = asyncio.Queue()

    def forget(self, keys: ChangedKeys) -> None:
        self._told.put_nowait(keys)

    def forget_all(self) -> None:
        self._told.put_nowait(None)

    def confirm_published(self, moment: float) -> None:
        self._told.put_nowait(moment)

    async def until(self, is_last: Callable[[Event], bool]) -> list[Event]:
        """What was told since the last call, the event included."""
        told: list[Event] = []
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not told or not is_last(told[-1]):
                told.append(await self._told.get())
        return told

    async def until_confirmed(self, since: float) -> list[Event]:
        return await self.until(lambda event: isinstance(event, float) and event >= since)

    async def until_quiet(self, seconds: float) -> list[Event]:
        """Everything, up to the last before it was told nothing for so long."""
        told: list[Event] = []
        while True:
            try:
                async with asyncio.timeout(seconds):
                    told.append(await self._told.get())
            except TimeoutError:
                return told


@asynccontextmanager
async def listening(url: SecretStr) -> AsyncIterator[tuple[Listener, RedisKeyChanges]]:
    """A gateway that listens, and somebody else who publishes."""
    listener = Listener()
    async with connected(url) as of_gateway, connected(url) as of_publisher:
        subscription = KeyChangeSubscription(of_gateway, listener, SystemClock())
        running = asyncio.create_task(subscription.run())
        try:
            yield listener, RedisKeyChanges(of_publisher)
        finally:
            running.cancel()
            await asyncio.wait([running])


@asynccontextmanager
async def connected(url: SecretStr) -> AsyncIterator[RedisConnection]:
    connection = RedisConnection(url, timeout_seconds=0.25, metrics=Metrics(CollectorRegistry()))
    try:
        yield connection
    finally:
        await connection.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    with running_redis("redis-7", tmp_path_factory.mktemp("redis")) as process:
        yield process


@pytest.fixture(scope="module", params=[*KINDS, "cluster"])
def url_of_each_kind(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SecretStr]:
    folder = tmp_path_factory.mktemp("redis")
    if request.param == "cluster":
        with running_cluster(folder) as url:
            yield url
    else:
        with running_redis(request.param, folder) as process:
            yield process.url


@pytest.mark.parametrize("keys", [ONE_KEY, ALL_OF_ADA, ChangedKeys("Äda \n", "key_1")])
async def test_what_is_published_is_heard_by_everybody(
    url_of_each_kind: SecretStr, keys: ChangedKeys
) -> None:
    async with listening(url_of_each_kind) as (one, _), listening(url_of_each_kind) as (other, publisher):
        for listener in (one, other):
            told = await listener.until_confirmed(0.0)
            assert told[0] is None  # what was said before anybody listened is not known

        assert await publisher.publish(keys)

        for listener in (one, other):
            told = await listener.until(lambda event: event == keys)
            assert None not in told


async def test_nothing_is_confirmed_before_what_was_published_earlier_is_told(server: RedisProcess) -> None:
    changes = [ChangedKeys("ada", f"key_{number}") for number in range(200)]
    async with listening(server.url) as (listener, _):
        await listener.until_confirmed(0.0)
        with server.client() as client:
            for change in changes:
                client.publish(KEY_CHANGES, json.dumps({"user": change.user, "key_id": change.key_id}))
        # The event loop stands still, as a busy gateway's may; then a ping and all that came are due at once.
        threading.Event().wait(2 * PING_SECONDS)

        told = await listener.until_confirmed(time.monotonic())

    assert [event for event in told if isinstance(event, ChangedKeys)] == changes


async def test_a_subscription_that_was_cut_forgets_all_before_it_confirms_anything(
    server: RedisProcess,
) -> None:
    async with listening(server.url) as (listener, _):
        await listener.until_confirmed(0.0)
        with server.client() as client:
            assert client.client_kill_filter(_type="pubsub") == 1
        cut_at = time.monotonic()

        told = await listener.until_confirmed(cut_at)

    assert None in told
    forgot_at = told.index(None)
    assert not [event for event in told[:forgot_at] if isinstance(event, float) and event > cut_at]


async def test_a_redis_that_is_gone_confirms_nothing_and_is_found_again(tmp_path: Path) -> None:
    with running_redis("redis-7", tmp_path) as server:
        async with listening(server.url) as (listener, publisher):
            await listener.until_confirmed(0.0)
            server.kill()
            killed_at = time.monotonic()

            assert not await publisher.publish(ONE_KEY)
            told = await listener.until_quiet(2.0)
            server.start()
            found_again = await listener.until_confirmed(time.monotonic())

    assert all(isinstance(event, float) and event < killed_at for event in told)
    assert found_again[0] is None


async def test_a_frozen_redis_is_known_to_be_dead_within_a_second(tmp_path: Path) -> None:
    with running_redis("redis-7", tmp_path) as server:
        async with listening(server.url) as (listener, publisher):
            await listener.until_confirmed(0.0)
            server.freeze()
            frozen_at = time.monotonic()
            try:
                assert not await publisher.publish(ONE_KEY)
                took_seconds = time.monotonic() - frozen_at
                told = await listener.until_quiet(2.0)
            finally:
                server.thaw()
            thawed = await listener.until_confirmed(time.monotonic())

    assert took_seconds < 1.5
    assert all(isinstance(event, float) and event < frozen_at for event in told)
    # The answer to a ping of long ago would be worth nothing: another subscription was begun.
    assert PING_SECONDS + PONG_TIMEOUT_SECONDS < 1.0
    assert thawed[0] is None


async def test_it_ends_when_it_is_cancelled_at_whatever_step(server: RedisProcess) -> None:
    """Also where redis-py, within Python 3.11's `wait_for`, takes the cancellation for its own."""
    async with connected(server.url) as connection:
        for steps in range(100):
            listener = Listener()
            subscription = KeyChangeSubscription(connection, listener, SystemClock())
            running = asyncio.create_task(subscription.run())
            if steps >= 50:
                await listener.until(lambda event: event is None)
            for _ in range(steps % 50):
                await asyncio.sleep(0)

            running.cancel()
            done, _ = await asyncio.wait([running], timeout=5)

            assert done, f"it runs on after {steps} steps"


@pytest.mark.parametrize(
    "message", [b"", b"no json", b"\xff", b"[]", b"{}", b'{"user": 1, "key_id": null}', b'{"user": "ada"}']
)
async def test_a_message_that_nobody_understands_may_mean_anything(
    server: RedisProcess, message: bytes
) -> None:
    async with listening(server.url) as (listener, publisher):
        await listener.until_confirmed(0.0)
        with server.client() as client:
            client.publish(KEY_CHANGES, message)
        assert await publisher.publish(ONE_KEY)

        told = await listener.until(lambda event: event == ONE_KEY)

    assert [event for event in told if not isinstance(event, float)] == [None, ONE_KEY]
