"""Consumers of the usage stream: here, and in processes of their own that may be killed."""

from __future__ import annotations

import asyncio
import multiprocessing
import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess

from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from serving.adapters.redis.client import RedisConnection
from serving.adapters.redis.stream import RedisUsageStream
from serving.adapters.sql.database import Database
from serving.adapters.sql.ledger import SqlLedger
from serving.adapters.tiers import load_tiers
from serving.clock import SystemClock
from serving.metering.consumer import Consumer, Recorder, Wait, wait_for
from serving.metering.metrics import MeterMetrics
from serving.metering.recount import recount
from tests.support.metering import connect

# One process has imported everything, and others are forked off it in a few milliseconds.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload([__name__])


def new_consumer(
    connection: RedisConnection,
    ledger: SqlLedger,
    *,
    recorder: Recorder | None = None,
    metrics: MeterMetrics | None = None,
    claim_idle_seconds: float = 0.0,
    entries_per_partition: int = 256,
    wait: Wait = wait_for,
) -> Consumer:
    """One that takes over at once what others were handed, unless told otherwise.

    recorder: in the place of the ledger, where events are recorded.
    """
    stream = RedisUsageStream(
        connection,
        consumer=secrets.token_hex(8),
        claim_idle_seconds=claim_idle_seconds,
        entries_per_partition=entries_per_partition,
    )
    return Consumer(
        stream,
        recorder or ledger,
        recount(connection, ledger).correct,
        metrics or MeterMetrics(CollectorRegistry()),
        SystemClock(),
        wait=wait,
    )


async def drain(consumer: Consumer) -> None:
    """Until nothing is left in the stream."""
    consumer.stop()
    await consumer.run()


@contextmanager
def consumer_process(
    url: SecretStr, database_url: str, *, claim_idle_seconds: float = 0.05, entries_per_partition: int = 4
) -> Iterator[BaseProcess]:
    """One with small batches, so that there are many points to kill it at. Killed at the end in any case."""
    process = _PROCESSES.Process(
        target=_consume,
        args=(url.get_secret_value(), database_url, claim_idle_seconds, entries_per_partition),
        daemon=True,
    )
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def _consume(url: str, database_url: str, claim_idle_seconds: float, entries_per_partition: int) -> None:
    async def run() -> None:
        connection, database = connect(SecretStr(url)), Database(database_url)
        consumer = new_consumer(
            connection,
            SqlLedger(database, load_tiers(None)),
            claim_idle_seconds=claim_idle_seconds,
            entries_per_partition=entries_per_partition,
        )
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, consumer.stop)
        await consumer.run()
        await connection.close()
        await database.close()

    asyncio.run(run())
