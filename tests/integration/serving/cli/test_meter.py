"""`visiongate meter` as a process: it says that it runs, moves events, shows figures, drains at its end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import urllib.request

from serving.adapters.sql.database import Database
from serving.adapters.sql.ledger import SqlLedger
from serving.adapters.tiers import load_tiers
from tests.integration.serving.cli.conftest import Site
from tests.support.metering import append, connect
from tests.support.usage_events import make_event
from tests.support.waiting import eventually

STOP_TIMEOUT_SECONDS = 20.0


def test_it_moves_events_until_it_is_told_to_stop(site: Site) -> None:
    port = site.environment["VISIONGATE_METER_METRICS_PORT"]

    def figure(name: str) -> float | None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                lines = answer.read().decode().splitlines()
        except OSError:
            return None
        return next((float(line.split()[-1]) for line in lines if line.startswith(name)), None)

    append_events(site, 0, 50)
    command = [sys.executable, "-m", "serving", "meter"]
    with subprocess.Popen(
        command,
        env=os.environ | site.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            moved = 'visiongate_ledger_events_total{verdict="new"}'
            assert eventually(lambda: figure(moved) == 50, within_seconds=60.0)
            append_events(site, 50, 100)
            process.send_signal(signal.SIGTERM)
            output, _ = process.communicate(timeout=STOP_TIMEOUT_SECONDS)
        finally:
            process.kill()

    assert (process.returncode, output) == (0, "Moving usage events to the ledger. Stop with Ctrl-C.\n")
    assert recorded(site) == 100


def append_events(site: Site, begin: int, end: int) -> None:
    async def run() -> None:
        connection = connect(site.redis_url)
        await append(connection, *(make_event(f"req_{number}") for number in range(begin, end)))
        await connection.close()

    asyncio.run(run())


def recorded(site: Site) -> int:
    async def run() -> int:
        database = Database(site.database_url)
        try:
            return (await SqlLedger(database, load_tiers(None)).counts()).events.requests
        finally:
            await database.close()

    return asyncio.run(run())
