"""A process that asks a gateway's key store for ever whether keys still work, and says when one stops.

Run as `python -m tests.support.key_gateway DATABASE_URL REDIS_URL`. A key a line on stdin; a JSON line on
stdout when it works, `{"prefix": "…", "said": "works", "last_worked": 12.5}`, and one when it no longer does,
with the code of the refusal. last_worked: when it was asked last that was answered with yes, on the machine's
monotonic clock, which all processes share.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from serving.adapters.redis.client import RedisConnection
from serving.adapters.redis.key_changes import KeyChangeSubscription
from serving.adapters.sql.database import Database
from serving.adapters.sql.key_store import SqlKeyStore
from serving.clock import SystemClock
from serving.domain.api_key import ApiKey
from serving.errors import VisiongateError
from serving.metrics import Metrics
from tests.support.keys import store_of

ASK_SECONDS = 0.02


async def main(database_url: str, redis_url: str) -> None:
    clock = SystemClock()
    database = Database(database_url)
    store = store_of(database, clock)
    connection = RedisConnection(
        SecretStr(redis_url), timeout_seconds=0.25, metrics=Metrics(CollectorRegistry())
    )
    async with asyncio.TaskGroup() as group:
        group.create_task(store.run())
        group.create_task(KeyChangeSubscription(connection, store, clock).run())
        async for line in await lines_of_stdin():
            group.create_task(watch(store, line.decode().strip()))


async def watch(store: SqlKeyStore, api_key: str) -> None:
    prefix = ApiKey.parse(api_key).prefix
    said, last_worked = "nothing", time.monotonic()
    while said in ("nothing", "works"):
        asked_at = time.monotonic()
        try:
            await store.authenticate(api_key)
            now, last_worked = "works", asked_at
        except VisiongateError as error:
            now = error.code
        if now != said:
            print(json.dumps({"prefix": prefix, "said": now, "last_worked": last_worked}), flush=True)  # noqa: T201 - what it is for
        said = now
        await asyncio.sleep(ASK_SECONDS)


async def lines_of_stdin() -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
