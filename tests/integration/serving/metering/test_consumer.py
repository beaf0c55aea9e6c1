"""The consumer between real Redis and real databases: every event in the ledger once, every charge right."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from serving.adapters import usage_codec
from serving.adapters.redis import keyspace
from serving.adapters.redis.client import RedisConnection
from serving.adapters.redis.counters import CountingLock
from serving.adapters.redis.stream import RedisUsageStream
from serving.adapters.sql.ledger import LedgerEntry, SqlLedger
from serving.domain.month import Month
from serving.domain.usage import UsageEvent, Verdict
from serving.errors import BackendUnavailable
from serving.metering.consumer import Consumer
from serving.metering.metrics import MeterMetrics
from serving.metering.priming import Priming
from serving.metering.recount import Recount
from tests.integration.serving.metering.conftest import PAIRS
from tests.support.consumers import consumer_process, drain, new_consumer
from tests.support.metering import append, append_later_form, charged, connect
from tests.support.postgresql import PostgresqlServer
from tests.support.redis import DURABLE, RedisProcess, running_redis
from tests.support.usage_events import make_event
from tests.support.waiting import eventually

MONTH = Month.of(make_event().admitted_at)
KEYS = [f"key_{number}" for number in range(8)]
KILLS = int(os.environ.get("VISIONGATE_TEST_KILLS", "3"))
"""Of the consumer, on each pair of Redis and database."""


def events(count: int, *, begin: int = 0) -> list[UsageEvent]:
    return [
        make_event(f"req_{number}", key_id=KEYS[number % len(KEYS)], pictures=1 + number % 3)
        for number in range(begin, begin + count)
    ]


def pictures_by_key(billed: Sequence[UsageEvent]) -> dict[str, int]:
    totals = dict.fromkeys(sorted({event.key_id for event in billed}), 0)
    for event in billed:
        totals[event.key_id] += event.pictures
    return totals


async def waiting(connection: RedisConnection) -> int:
    return (await RedisUsageStream(connection, consumer="test").backlog()).entries


async def waiting_falls_to(connection: RedisConnection, entries: int) -> None:
    async with asyncio.timeout(20.0):
        while await waiting(connection) > entries:
            pass


async def assert_exact(connection: RedisConnection, ledger: SqlLedger, billed: Sequence[UsageEvent]) -> None:
    """Each event is in the ledger once, with its pictures, and charged once; nothing is left to do."""
    counts = await ledger.counts()
    expected = pictures_by_key(billed)
    assert counts.events.requests == len(billed) == len(await ledger.entry_ids(e.request_id for e in billed))
    assert counts.events == counts.hourly == counts.daily
    assert await ledger.month_totals(MONTH) == expected
    assert {key_id: await charged(connection, key_id, MONTH) for key_id in expected} == expected
    assert await waiting(connection) == 0
    for partition in range(keyspace.PARTITIONS):
        pending = await connection.redis.xpending(keyspace.usage_stream(partition), keyspace.LEDGER_GROUP)
        assert pending["pending"] == 0


async def test_without_events_there_is_nothing_to_move(
    connection: RedisConnection, ledger: SqlLedger
) -> None:
    await drain(new_consumer(connection, ledger))

    await assert_exact(connection, ledger, [])


async def test_every_event_is_moved_as_it_was(connection: RedisConnection, ledger: SqlLedger) -> None:
    billed = events(500)
    await append(connection, *billed)
    registry = CollectorRegistry()

    await drain(new_consumer(connection, ledger, metrics=MeterMetrics(registry), entries_per_partition=16))

    await assert_exact(connection, ledger, billed)
    moved = registry.get_sample_value("visiongate_ledger_events_total", {"verdict": "new"})
    assert moved == len(billed)


async def test_an_event_that_came_twice_is_billed_and_charged_once(
    connection: RedisConnection, ledger: SqlLedger
) -> None:
    """Its second entry beside the first, in the same batch, and long after it."""
    billed = events(20)
    await append(connection, *billed, *billed[:10])
    await drain(new_consumer(connection, ledger))
    await append(connection, *billed[5:15])

    await drain(new_consumer(connection, ledger))

    await assert_exact(connection, ledger, billed)


class DiesAfterCommit:
    """A ledger whose consumer does not survive the first batch that it has committed."""

    def __init__(self, ledger: SqlLedger) -> None:
        self._ledger = ledger

    async def record(self, entries: Sequence[LedgerEntry]) -> Sequence[Verdict]:
        await self._ledger.record(entries)
        raise asyncio.CancelledError


async def test_dead_between_commit_and_acknowledgement_gives_back_once(
    connection: RedisConnection, ledger: SqlLedger
) -> None:
    billed = events(20)
    await append(connection, *billed)
    await drain(new_consumer(connection, ledger))
    await append(connection, *billed, *events(20, begin=20))
    for _ in range(3):
        with pytest.raises(asyncio.CancelledError):
            await new_consumer(connection, ledger, recorder=DiesAfterCommit(ledger)).run()
    assert await waiting(connection) == 40

    await drain(new_consumer(connection, ledger))

    await assert_exact(connection, ledger, events(40))


@pytest.mark.timeout(60 + 10 * KILLS)
async def test_killed_at_any_point_it_loses_and_doubles_nothing(
    redis_server: RedisProcess, connection: RedisConnection, ledger: SqlLedger, database_url: str
) -> None:
    """Rounds of `kill -9`, each wherever it happens to be; a tenth of the events come twice."""
    rng = random.Random(4)
    billed: list[UsageEvent] = []
    kills_while_busy = 0
    for _ in range(KILLS):
        new = events(100, begin=len(billed))
        billed += new
        await append(connection, *new, *rng.sample(billed, 10))
        before = await waiting(connection)
        with consumer_process(redis_server.url, database_url) as process:
            await waiting_falls_to(connection, rng.randrange(before // 2, before))
            process.kill()
            process.join()
        kills_while_busy += 0 < await waiting(connection) < before

    await drain(new_consumer(connection, ledger))

    assert kills_while_busy > 0  # the others came too late, on a busy machine
    await assert_exact(connection, ledger, billed)


async def test_two_at_once_share_the_work(
    redis_server: RedisProcess, connection: RedisConnection, ledger: SqlLedger, database_url: str
) -> None:
    """Each takes from the other what is idle for a twentieth of a second, be it dead or only slow."""
    billed = events(600)
    with (
        consumer_process(redis_server.url, database_url),
        consumer_process(redis_server.url, database_url),
    ):
        for begin in range(0, 600, 100):
            await append(connection, *billed[begin : begin + 100], *billed[begin : begin + 20])
        await waiting_falls_to(connection, 0)

    await drain(new_consumer(connection, ledger))
    await assert_exact(connection, ledger, billed)


async def test_asked_to_stop_it_drains_what_is_there(
    redis_server: RedisProcess, connection: RedisConnection, ledger: SqlLedger, database_url: str
) -> None:
    billed = events(300)
    await append(connection, *billed)
    with consumer_process(redis_server.url, database_url) as process:
        await waiting_falls_to(connection, 250)
        process.terminate()
        process.join(20.0)
        assert process.exitcode == 0

    await assert_exact(connection, ledger, billed)


def failures(metrics: MeterMetrics, part: str) -> float:
    return metrics.registry.get_sample_value("visiongate_ledger_failures_total", {"part": part}) or 0.0


@asynccontextmanager
async def running(consumer: Consumer) -> AsyncIterator[None]:
    """Until the block ends, and then until there is nothing left to move."""
    task = asyncio.create_task(consumer.run())
    try:
        yield
        consumer.stop()
        await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize(
    "redis_kind", [kind for kind, pair in PAIRS.items() if pair == "postgresql"], indirect=True
)
async def test_while_the_database_is_away_nothing_is_lost(
    connection: RedisConnection, ledger: SqlLedger, postgresql: PostgresqlServer
) -> None:
    metrics, billed = MeterMetrics(CollectorRegistry()), events(200)
    async with running(new_consumer(connection, ledger, metrics=metrics)):
        await append(connection, *billed[:100])
        postgresql.stop()
        try:
            await append(connection, *billed[100:])
            assert await asyncio.to_thread(eventually, lambda: failures(metrics, "sql") >= 3)
        finally:
            postgresql.start()
        await waiting_falls_to(connection, 0)

    await assert_exact(connection, ledger, billed)


async def test_while_redis_is_away_nothing_is_lost(ledger: SqlLedger, tmp_path: Path) -> None:
    metrics, billed = MeterMetrics(CollectorRegistry()), events(200)
    with running_redis("redis-7", tmp_path / "redis", *DURABLE) as server:
        connection = connect(server.url)
        async with running(new_consumer(connection, ledger, metrics=metrics)):
            await append(connection, *billed[:100])
            server.kill()
            assert await asyncio.to_thread(eventually, lambda: failures(metrics, "redis") >= 3)
            server.start()
            await append(connection, *billed[100:])
            await waiting_falls_to(connection, 0)

        await assert_exact(connection, ledger, billed)
        await connection.close()


class Before:
    """A ledger to which something happens before it records, or after it has, and before anybody knows."""

    def __init__(
        self, ledger: SqlLedger, happens: Callable[[], Awaitable[None]], *, recorded_first: bool
    ) -> None:
        self._ledger = ledger
        self._happens: Callable[[], Awaitable[None]] | None = happens
        self._recorded_first = recorded_first

    async def record(self, entries: Sequence[LedgerEntry]) -> Sequence[Verdict]:
        happens, self._happens = self._happens, None
        if happens is not None and not self._recorded_first:
            await happens()
        verdicts = await self._ledger.record(entries)
        if happens is not None and self._recorded_first:
            await happens()
        return verdicts


@pytest.mark.parametrize("appended_again", [0, 10])
@pytest.mark.parametrize(
    "recorded_first", [True, False], ids=["recorded, then flushed", "flushed, then recorded"]
)
async def test_a_flush_between_reading_and_acknowledging_leaves_the_counts_right(
    connection: RedisConnection,
    ledger: SqlLedger,
    counting: Recount,
    recorded_first: bool,
    appended_again: int,
) -> None:
    """Counts are taken from the ledger before these events come there, or after; gateways append again."""
    billed = events(20)
    await append(connection, *billed)

    async def flush() -> None:
        await connection.redis.flushall()
        await Priming(counting).prime()
        await append(connection, *billed[:appended_again])

    consumer = new_consumer(connection, ledger, recorder=Before(ledger, flush, recorded_first=recorded_first))
    await drain(consumer)

    await assert_exact(connection, ledger, billed)


async def test_poison_holds_up_nobody_and_is_counted(connection: RedisConnection, ledger: SqlLedger) -> None:
    metrics, billed = MeterMetrics(CollectorRegistry()), events(50)
    await append(connection, *billed[:25])
    for partition in range(keyspace.PARTITIONS):
        await connection.redis.xadd(keyspace.usage_stream(partition), {"e": b"?"})
    await append(connection, *billed[25:])

    await drain(new_consumer(connection, ledger, metrics=metrics))

    await assert_exact(connection, ledger, billed)
    value = metrics.registry.get_sample_value
    assert value("visiongate_ledger_poison_total") == keyspace.PARTITIONS


async def test_a_later_form_holds_up_nobody_and_is_billed_once_somebody_reads_it(
    connection: RedisConnection, ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics, billed = MeterMetrics(CollectorRegistry()), events(60)
    await append_later_form(connection, *billed[:40])
    await append(connection, *billed[40:])

    old = new_consumer(connection, ledger, metrics=metrics, entries_per_partition=2)
    await drain(old)
    before = (await ledger.counts()).events.requests, await waiting(connection)
    monkeypatch.setattr(usage_codec, "FORM", usage_codec.FORM + 1)
    await drain(new_consumer(connection, ledger))

    assert before == (20, 40)
    assert metrics.registry.get_sample_value("visiongate_ledger_later_form_total") == 40
    assert metrics.registry.get_sample_value("visiongate_ledger_poison_total") == 0
    await assert_exact(connection, ledger, billed)


async def test_events_move_on_while_another_process_counts(
    connection: RedisConnection, ledger: SqlLedger, counting: Recount
) -> None:
    """As after a `reconcile --repair` that was killed: nobody gives its lock back until it lapses."""
    billed = events(20)
    await append(connection, *billed)
    dead = [CountingLock(connection, partition) for partition in range(keyspace.PARTITIONS)]

    async def flush() -> None:
        await connection.redis.flushall()
        await Priming(counting).prime()
        for lock in dead:
            assert await lock.take()

    recorder = Before(ledger, flush, recorded_first=False)
    async with running(new_consumer(connection, ledger, recorder=recorder)):
        await waiting_falls_to(connection, 0)
        later = events(20, begin=20)
        await append(connection, *later)
        await waiting_falls_to(connection, 0)
        for lock in dead:
            await lock.give_back()

    await assert_exact(connection, ledger, [*billed, *later])


class Away:
    """A ledger that is not there."""

    async def record(self, entries: Sequence[LedgerEntry]) -> Sequence[Verdict]:
        raise BackendUnavailable


@pytest.mark.parametrize(
    ("recorder", "expected_seconds"),
    [
        (None, [0.005, 0.01, 0.02, 0.04, 0.08, 0.1, 0.1]),  # nothing to read
        (Away(), [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]),  # nowhere to record what was read
    ],
)
async def test_it_asks_less_often_the_longer_it_is_in_vain(
    connection: RedisConnection, ledger: SqlLedger, recorder: Away | None, expected_seconds: list[float]
) -> None:
    pauses_seconds: list[float] = []

    async def wait(_: asyncio.Event, seconds: float) -> None:
        pauses_seconds.append(seconds)
        if len(pauses_seconds) == len(expected_seconds):
            consumer.stop()

    if recorder is not None:
        await append(connection, *events(1))
    consumer = new_consumer(connection, ledger, recorder=recorder, wait=wait)

    await consumer.run()

    assert pauses_seconds == expected_seconds


async def test_backlog_and_lag_are_shown_while_nothing_moves(
    connection: RedisConnection, ledger: SqlLedger
) -> None:
    metrics = MeterMetrics(CollectorRegistry())
    await append(connection, *events(30))
    consumer = new_consumer(connection, ledger, recorder=Away(), metrics=metrics)
    consumer.stop()
    await consumer.run()

    value = metrics.registry.get_sample_value
    assert value("visiongate_ledger_backlog_events") == 30
    assert (value("visiongate_ledger_lag_seconds") or 0) > 0
    assert failures(metrics, "sql") == 1
