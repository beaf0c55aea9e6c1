"""The ledger of a site as its database has it, read past our own code."""

from __future__ import annotations

import sqlite3

import asyncpg

from serving.adapters.redis.keyspace import PARTITIONS, usage_stream
from tests.support.accounts import Entry
from tests.support.site import Site, seconds_until

ENTRIES = "SELECT request_id, trace_id, pictures FROM usage_events"
SETTLED_WITHIN_SECONDS = 60.0


async def read_ledger(site: Site) -> list[Entry]:
    if site.postgresql is None:
        with sqlite3.connect(site.database_url.removeprefix("sqlite:///")) as database:
            return [Entry(*row) for row in database.execute(ENTRIES)]
    connection = await asyncpg.connect(site.database_url)
    try:
        return [Entry(*row) for row in await connection.fetch(ENTRIES)]
    finally:
        await connection.close()


async def await_settled(site: Site) -> None:
    """Until no event is on its way: none in a journal, whosoever it is, none in the stream."""
    journals = site.run_directory / "journal"

    def is_settled() -> bool:
        with site.redis.client() as client:
            return not any(journals.glob("*")) and not any(
                client.xlen(usage_stream(partition)) for partition in range(PARTITIONS)
            )

    await seconds_until(is_settled, "settled", within_seconds=SETTLED_WITHIN_SECONDS)
