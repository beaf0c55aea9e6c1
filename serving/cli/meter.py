"""`visiongate meter`: moves usage events from Redis to the ledger. Several may run, and any may be killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
from contextlib import AsyncExitStack

import typer
from prometheus_client import CollectorRegistry

from serving.adapters.prometheus import serve_metrics
from serving.adapters.redis.client import RedisConnection
from serving.adapters.redis.stream import RedisUsageStream
from serving.adapters.sql.database import Database
from serving.adapters.sql.ledger import SqlLedger
from serving.adapters.tiers import load_tiers
from serving.clock import SystemClock
from serving.errors import BackendUnavailable
from serving.logs import log_to
from serving.metering.consumer import Consumer
from serving.metering.metrics import MeterMetrics
from serving.metering.recount import recount
from serving.metrics import Metrics
from serving.settings import Settings, load_settings

CALL_TIMEOUT_SECONDS = 5.0
"""Nobody waits for an answer here, and a batch is large: not the gateway's timeout."""


def meter() -> None:
    """Move usage events from Redis to the ledger, until Ctrl-C."""
    settings = load_settings()
    log_to(settings.run_directory / "logs" / f"meter-{os.getpid()}.jsonl", level=settings.log_level)
    asyncio.run(_run(settings))


async def _run(settings: Settings) -> None:
    async with AsyncExitStack() as last_first:
        metrics = MeterMetrics(CollectorRegistry())
        # Its series are a gateway's and shown nowhere: what fails here is counted by the consumer itself.
        connection = RedisConnection(
            settings.redis_address,
            timeout_seconds=CALL_TIMEOUT_SECONDS,
            metrics=Metrics(CollectorRegistry()),
        )
        last_first.push_async_callback(connection.close)
        database = Database(settings.database_url)
        last_first.push_async_callback(database.close)
        ledger = SqlLedger(database, load_tiers(settings.tiers_file))
        consumer = Consumer(
            RedisUsageStream(connection, consumer=_own_name()),
            ledger,
            recount(connection, ledger).correct,
            metrics,
            SystemClock(),
        )
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, consumer.stop)
        with contextlib.suppress(BackendUnavailable):  # the consumer waits for it, and so can we
            await database.prepare()
        last_first.callback(serve_metrics(metrics.registry, first_port=settings.meter_metrics_port))
        typer.echo("Moving usage events to the ledger. Stop with Ctrl-C.")
        await consumer.run()


def _own_name() -> str:
    """That no other process has, or will have after this one."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
