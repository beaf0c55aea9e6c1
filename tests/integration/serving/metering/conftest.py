"""Real Redis servers and databases that the ledger's consumer works between."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from sqlalchemy import delete

from serving.adapters.redis.client import RedisConnection
from serving.adapters.sql.database import Database
from serving.adapters.sql.ledger import SqlLedger
from serving.adapters.sql.ledger_tables import UsageDailyRow, UsageEventRow, UsageHourlyRow
from serving.adapters.tiers import load_tiers
from serving.metering.recount import Recount, recount
from tests.support.metering import connect
from tests.support.postgresql import PostgresqlServer, running_postgresql
from tests.support.redis import Kind, RedisProcess, running_redis

PAIRS: dict[Kind, str] = {"redis-6.2": "postgresql", "redis-7": "sqlite"}
"""Each Redis with a database: both kinds of both are met, without all combinations."""


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresqlServer]:
    with running_postgresql() as server:
        yield server


@pytest.fixture(scope="session", params=PAIRS)
def redis_kind(request: pytest.FixtureRequest) -> Kind:
    kind: Kind = request.param
    return kind


@pytest.fixture(scope="session")
def redis_server(redis_kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    with running_redis(redis_kind, tmp_path_factory.mktemp(redis_kind)) as server:
        yield server


@pytest.fixture
async def connection(redis_server: RedisProcess) -> AsyncIterator[RedisConnection]:
    """To an empty Redis."""
    connection = connect(redis_server.url)
    await connection.redis.flushall()
    yield connection
    await connection.close()


@pytest.fixture(scope="session")
def database_url(
    redis_kind: Kind, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> str:
    if PAIRS[redis_kind] == "sqlite":
        return f"sqlite:///{tmp_path_factory.mktemp('database')}/ledger.db"
    server: PostgresqlServer = request.getfixturevalue("postgresql")
    return server.new_database("metering")


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """With an empty ledger."""
    database = Database(database_url)
    async with database.writing() as session:
        for table in (UsageEventRow, UsageHourlyRow, UsageDailyRow):
            await session.execute(delete(table))
    yield database
    await database.close()


@pytest.fixture
def ledger(database: Database) -> SqlLedger:
    return SqlLedger(database, load_tiers(None))


@pytest.fixture
def counting(connection: RedisConnection, ledger: SqlLedger) -> Recount:
    return recount(connection, ledger)
