"""A revoked key stops within a second on every gateway, whatever is broken: real processes, real servers."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from serving.adapters.key_changes import KeyChangePublisher
from serving.adapters.redis.client import RedisConnection
from serving.adapters.redis.key_changes import RedisKeyChanges
from serving.adapters.sql.database import Database
from serving.adapters.sql.key_registry import KeyRegistry
from serving.clock import SystemClock
from serving.domain.key_record import IssuedKey
from serving.metrics import Metrics
from tests.support.keys import ACTOR, Unpublished, registry_of
from tests.support.postgresql import PostgresqlServer, running_postgresql
from tests.support.redis import RedisProcess, running_redis

LONG = os.environ.get("VISIONGATE_TEST_CHAOS") == "long"
GATEWAYS = 4 if LONG else 2
DATABASES = ("sqlite", "postgresql") if LONG else ("sqlite",)
"""PostgreSQL has a test of its own below, and each has those of `tests/contract/test_key_freshness.py`."""
PROMISED_SECONDS = 1.0
PATIENCE_SECONDS = 30.0
PROJECT = Path(__file__).parents[3]

log = logging.getLogger(__name__)

Change = Callable[[KeyRegistry, IssuedKey], Coroutine[None, None, object]]


@dataclass(frozen=True)
class Said:
    prefix: str
    said: str
    last_worked: float


class GatewayProcess:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def watch(self, key: IssuedKey) -> None:
        """Returns when the key works there."""
        assert self._process.stdin is not None
        self._process.stdin.write(key.api_key.reveal().encode() + b"\n")
        assert (await self.next()).said == "works"

    async def next(self) -> Said:
        assert self._process.stdout is not None
        async with asyncio.timeout(PATIENCE_SECONDS):
            line = json.loads(await self._process.stdout.readline())
        return Said(line["prefix"], line["said"], line["last_worked"])


class Relay:
    """A PostgreSQL server's socket in another folder, whose connections a test can cut."""

    def __init__(self, target: Path, folder: Path) -> None:
        self._target = target
        self.folder = folder
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def open(self) -> None:
        self._server = await asyncio.start_unix_server(self._carry, self.folder / self._target.name)

    def cut(self) -> None:
        """For good: nothing passes, and nobody new is let in."""
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_unix_connection(self._target)
        self._writers |= {writer, to_server}
        await asyncio.gather(_copy(reader, to_server), _copy(from_server, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


@pytest.fixture(scope="module")
def postgresql() -> Iterator[PostgresqlServer]:
    with running_postgresql() as server:
        yield server


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisProcess]:
    with running_redis("redis-7", tmp_path / "redis") as process:
        yield process


@pytest.fixture
def relay_folder() -> Iterator[Path]:
    """With a path short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="relay_", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/keys.db"
    server: PostgresqlServer = request.getfixturevalue("postgresql")
    return server.new_database(f"revocation_{time.monotonic_ns()}")


@asynccontextmanager
async def running_gateways(database_url: str, redis: RedisProcess) -> AsyncIterator[list[GatewayProcess]]:
    processes = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.support.key_gateway", database_url, redis.url.get_secret_value()),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=PROJECT,
        )
        for _ in range(GATEWAYS)
    ]
    try:
        yield [GatewayProcess(process) for process in processes]
    finally:
        for process in processes:
            process.kill()
            await process.communicate()


@asynccontextmanager
async def operator(url: str, redis: RedisProcess | None) -> AsyncIterator[KeyRegistry]:
    """redis: None loses every message."""
    async with AsyncExitStack() as stack:
        database = Database(url)
        stack.push_async_callback(database.close)
        publisher: KeyChangePublisher = Unpublished()
        if redis is not None:
            connection = RedisConnection(
                redis.url, timeout_seconds=0.25, metrics=Metrics(CollectorRegistry())
            )
            stack.push_async_callback(connection.close)
            publisher = RedisKeyChanges(connection)
        yield registry_of(database, SystemClock(), publisher)


async def delays_until_it_stops(
    gateways: list[GatewayProcess], registry: KeyRegistry, key: IssuedKey, change: Change, *, code: str
) -> list[float]:
    """Seconds from before the change was committed until the key was last let in, by each gateway."""
    began = time.monotonic()
    await change(registry, key)
    last_words = await asyncio.gather(*(gateway.next() for gateway in gateways))
    assert {(each.prefix, each.said) for each in last_words} == {(key.api_key.prefix, code)}
    return [each.last_worked - began for each in last_words]


async def watched_key(gateways: list[GatewayProcess], registry: KeyRegistry) -> IssuedKey:
    key = await registry.create(actor=ACTOR, user="ada", tier="pro")
    await asyncio.gather(*(gateway.watch(key) for gateway in gateways))
    return key


async def revoke(registry: KeyRegistry, key: IssuedKey) -> object:
    return await registry.revoke(key.record.id, actor=ACTOR)


async def disable_its_user(registry: KeyRegistry, key: IssuedKey) -> object:
    return await registry.set_user_enabled(key.record.user, enabled=False, actor=ACTOR)


async def rotate_it_at_once(registry: KeyRegistry, key: IssuedKey) -> object:
    return await registry.rotate(key.record.id, actor=ACTOR, overlap=timedelta())


def report(what: str, delays_seconds: list[float]) -> None:
    """Seen with `--log-cli-level INFO`."""
    log.info("%s: %s ms", what, [round(delay * 1000, 1) for delay in delays_seconds])


async def test_every_gateway_stops_within_a_second_of_every_kind_of_change(
    database_url: str,
    redis_server: RedisProcess,
) -> None:
    async with (
        running_gateways(database_url, redis_server) as gateways,
        operator(database_url, redis_server) as published,
        operator(database_url, None) as unpublished,
    ):
        for change, code in (
            (revoke, "key_revoked"),
            (rotate_it_at_once, "key_expired"),
            (disable_its_user, "key_revoked"),
        ):
            key = await watched_key(gateways, published)
            delays = await delays_until_it_stops(gateways, published, key, change, code=code)
            report(change.__name__, delays)
            assert max(delays) < PROMISED_SECONDS
        await published.set_user_enabled("ada", enabled=True, actor=ACTOR)

        key = await watched_key(gateways, published)
        delays = await delays_until_it_stops(gateways, unpublished, key, revoke, code="key_revoked")
        report("lost_message", delays)
        assert max(delays) < PROMISED_SECONDS

        key = await watched_key(gateways, published)
        redis_server.kill()
        delays = await delays_until_it_stops(gateways, published, key, revoke, code="key_revoked")
        report("redis_killed", delays)
        assert max(delays) < PROMISED_SECONDS


async def test_gateways_cut_off_from_the_database_hear_of_a_revocation_all_the_same(
    postgresql: PostgresqlServer,
    redis_server: RedisProcess,
    relay_folder: Path,
) -> None:
    """And the keys that they know work on until then: in the long form, for it takes a machine that is not so
    loaded that a gateway goes without a look for a second. `test_key_freshness.py` has that on its own clock.
    """
    direct = postgresql.new_database(f"partition_{time.monotonic_ns()}")
    socket_folder = direct.partition("host=")[2]
    relay = Relay(Path(socket_folder) / ".s.PGSQL.5432", relay_folder)
    await relay.open()
    async with (
        running_gateways(direct.replace(socket_folder, str(relay_folder)), redis_server) as gateways,
        operator(direct, redis_server) as registry,
    ):
        revoked = await watched_key(gateways, registry)
        kept = await watched_key(gateways, registry) if LONG else revoked
        relay.cut()
        words = [asyncio.create_task(gateway.next()) for gateway in gateways]
        if LONG:
            assert not (await asyncio.wait(words, timeout=1.5 * PROMISED_SECONDS))[0]

        began = time.monotonic()
        await registry.revoke(revoked.record.id, actor=ACTOR)
        last_words = await asyncio.gather(*words)
        delays = [each.last_worked - began for each in last_words]
        report("partitioned", delays)

        assert {(each.prefix, each.said) for each in last_words} == {
            (revoked.api_key.prefix, "backend_unavailable")
        }
        assert max(delays) < PROMISED_SECONDS
        if LONG:
            words = [asyncio.create_task(gateway.next()) for gateway in gateways]
            assert not (await asyncio.wait(words, timeout=0.5))[0], f"{kept.record.id} stopped"
            for word in words:
                word.cancel()
