"""Real Redis servers and databases that the ledger's consumer works between."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import get_args

import pytest

from serving.adapters.redis.client import RedisConnection
from serving.adapters.sql.database import Database
from serving.adapters.sql.ledger import SqlLedger
from serving.adapters.tiers import load_tiers
from serving.metering.recount import Recount, recount
from tests.support.metering import connect
from tests.support.postgresql import PostgresqlServer, running_postgresql
from tests.support.redis import Kind, RedisProcess, running_redis

PAIRS = {"redis-6.2": "postgresql", "redis-7": "sqlite"}
"""Each Redis with a database: both kinds of both are met, without all combinations."""


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresqlServer]:
    with running_postgresql() as server:
        yield server


@pytest.fixture(scope="session", params=PAIRS)
def redis_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RedisProcess]:
    kind: Kind = request.param
    assert kind in get_args(Kind)
    with running_redis(kind, tmp_path_factory.mktemp(kind)) as server:
        yield server


@pytest.fixture
async def connection(redis_server: RedisProcess) -> AsyncIterator[RedisConnection]:
    """To an empty Redis."""
    connection = connect(redis_server.url)
    await connection.redis.flushall()
    yield connection
    await connection.close()


@pytest.fixture
def database_url(redis_server: RedisProcess, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty database."""
    if PAIRS[request.node.callspec.params["redis_server"]] == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.db"
    server: PostgresqlServer = request.getfixturevalue("postgresql")
    return server.new_database(f"test_{time.monotonic_ns()}")


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    await database.prepare()
    yield database
    await database.close()


@pytest.fixture
def ledger(database: Database) -> SqlLedger:
    return SqlLedger(database, load_tiers(None))


@pytest.fixture
def counting(connection: RedisConnection, ledger: SqlLedger) -> Recount:
    return recount(connection, ledger)
