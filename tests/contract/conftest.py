"""What a port's every form is tested on: real databases, and a clock that tests move."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy import delete

from serving.adapters.memory.clock import ManualClock
from serving.adapters.sql.base import Table
from serving.adapters.sql.database import Database
from serving.adapters.sql.ledger import SqlLedger
from tests.support.account_forms import Accounts, NewAccounts, in_memory, on_redis
from tests.support.keys import TIERS, House, memory_house, sql_house
from tests.support.postgresql import PostgresqlServer, running_postgresql
from tests.support.redis import KINDS, cluster_client, running_cluster, running_redis


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresqlServer]:
    with running_postgresql() as server:
        yield server


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(scope="session", params=["memory", *KINDS, "cluster"])
def new_accounts(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[NewAccounts]:
    """Empty accounts of each form, on a clock of their own."""
    match request.param:
        case "memory":
            yield in_memory()
        case "cluster":
            with running_cluster(tmp_path_factory.mktemp("cluster")) as url, cluster_client(url) as cluster:
                yield on_redis(url, cluster)
        case kind:
            with running_redis(kind, tmp_path_factory.mktemp(kind)) as server, server.client() as client:
                yield on_redis(server.url, client)


@pytest.fixture
async def accounts(new_accounts: NewAccounts) -> AsyncIterator[Accounts]:
    async with new_accounts() as made:
        yield made


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/keys.db"
    server: PostgresqlServer = request.getfixturevalue("postgresql")
    return server.new_database(f"test_{time.monotonic_ns()}")


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database of each kind, for tests that empty it."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path_factory.mktemp('ledger')}/ledger.db"
    server: PostgresqlServer = request.getfixturevalue("postgresql")
    return server.new_database("ledger")


@pytest.fixture
async def database(ledger_url: str) -> AsyncIterator[Database]:
    """With nothing in its tables."""
    database = Database(ledger_url)
    async with database.writing() as session:
        for table in reversed(Table.metadata.sorted_tables):
            await session.execute(delete(table))
    yield database
    await database.close()


@pytest.fixture
def ledger(database: Database) -> SqlLedger:
    return SqlLedger(database, TIERS)


@pytest.fixture(scope="session")
def keys_postgresql_url(postgresql: PostgresqlServer) -> str:
    return postgresql.new_database("keys")


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
async def house(request: pytest.FixtureRequest, clock: ManualClock, tmp_path: Path) -> AsyncIterator[House]:
    """Every form of what keeps keys and lets them be changed, without any."""
    if request.param == "memory":
        yield memory_house(clock)
        return
    is_sqlite = request.param == "sqlite"
    url = f"sqlite:///{tmp_path}/keys.db" if is_sqlite else request.getfixturevalue("keys_postgresql_url")
    async with sql_house(url, clock) as made:
        yield made
