"""SQLite and PostgreSQL behave alike, when all is well and when it is not."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Protocol

import asyncpg
import pytest
from sqlalchemy import func, insert, select, text
from sqlalchemy.exc import IntegrityError, StatementError

from serving.adapters.memory.clock import ManualClock
from serving.adapters.sql.database import Database
from serving.adapters.sql.key_registry import KeyRegistry
from serving.adapters.sql.key_store import LOOK_UP_TIMEOUT_SECONDS, SqlKeyStore
from serving.adapters.sql.key_tables import ApiKeyRow, KeySecretRow, rows_of_secrets
from serving.domain.api_key import ApiKey
from serving.errors import BackendUnavailable
from tests.support.keys import ACTOR, registry_of, store_of

PROJECT = Path(__file__).parents[2]

PREPARE = """
import asyncio, sys
from serving.adapters.sql.database import Database

async def main():
    database = Database(sys.argv[1])
    await database.prepare()
    await database.close()

asyncio.run(main())
"""


class Server(Protocol):
    """What the `postgresql` fixture can do to its server."""

    def stop(self) -> None: ...
    def start(self) -> None: ...
    def freeze(self) -> None: ...
    def thaw(self) -> None: ...
    def new_database(self, name: str) -> str: ...
    def url_of(self, name: str) -> str: ...


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Database]:
    database = Database(url)
    try:
        yield database
    finally:
        await database.close()


@asynccontextmanager
async def opened_store(url: str, clock: ManualClock) -> AsyncIterator[tuple[SqlKeyStore, KeyRegistry]]:
    async with opened(url) as database:
        store = store_of(database, clock)
        try:
            yield store, registry_of(database, clock)
        finally:
            await store.close()


async def test_tables_are_made_once_by_many_at_once(database_url: str) -> None:
    async with AsyncExitStack() as stack:
        databases = [await stack.enter_async_context(opened(database_url)) for _ in range(8)]

        await asyncio.gather(*(database.prepare() for database in databases))

        async with databases[0].reading() as session:
            assert await session.scalar(select(func.count()).select_from(ApiKeyRow)) == 0


async def test_tables_are_made_once_by_several_processes(database_url: str) -> None:
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", PREPARE, database_url, stderr=asyncio.subprocess.PIPE, cwd=PROJECT
        )
        for _ in range(3)
    ]

    complaints = [(await process.communicate())[1].decode() for process in processes]

    assert [(process.returncode, said) for process, said in zip(processes, complaints, strict=True)] == [
        (0, "")
    ] * 3


async def test_moments_come_back_in_utc(database_url: str, clock: ManualClock) -> None:
    paris = timezone(timedelta(hours=2))
    expires_at = datetime(2026, 7, 1, 1, 30, 0, 123_456, tzinfo=paris)
    async with opened_store(database_url, clock) as (_, registry):
        await registry.create(actor=ACTOR, user="ada", tier="free", expires_at=expires_at)

        (record,) = await registry.list()

    assert record.expires_at == expires_at
    assert record.expires_at is not None
    assert record.expires_at.tzinfo is UTC
    assert record.created_at == clock.now()
    assert record.revoked_at is None


async def test_a_naive_moment_is_refused(database_url: str) -> None:
    moment = datetime(2026, 1, 1)
    async with opened(database_url) as database:
        with pytest.raises(Exception, match="time zone"):
            async with database.reading() as session:
                await session.scalars(select(ApiKeyRow).where(ApiKeyRow.created_at == moment))


async def test_no_models_named_is_null_and_not_the_word(database_url: str, clock: ManualClock) -> None:
    async with opened_store(database_url, clock) as (_, registry):
        await registry.create(actor=ACTOR, user="ada", tier="free")
    async with opened(database_url) as database, database.reading() as session:
        assert await session.scalar(text("SELECT count(*) FROM api_keys WHERE models IS NULL")) == 1


async def test_a_failed_transaction_leaves_nothing(database_url: str, clock: ManualClock) -> None:
    async with opened_store(database_url, clock) as (_, registry), opened(database_url) as database:
        issued = await registry.create(actor=ACTOR, user="ada", tier="free")

        async def change_and_fail() -> None:
            async with database.writing() as session:
                await session.execute(text("UPDATE api_keys SET tier = 'enterprise'"))
                await session.execute(insert(KeySecretRow), rows_of_secrets(issued.record))

        with pytest.raises(IntegrityError):
            await change_and_fail()

        assert list(await registry.list()) == [issued.record]


async def test_a_second_file_user_reads_while_one_writes(tmp_path: Path, clock: ManualClock) -> None:
    url = f"sqlite:///{tmp_path}/keys.db"
    async with opened_store(url, clock) as (store, registry), opened(url) as writer:
        issued = await registry.create(actor=ACTOR, user="ada", tier="free")
        async with writer.writing() as session:
            await session.execute(text("UPDATE api_keys SET tier = 'pro'"))

            principal = await store.authenticate(issued.api_key.reveal())

        assert principal.tier.name == "free"
        clock.advance(1)
        assert (await store.authenticate(issued.api_key.reveal())).tier.name == "pro"


async def test_foreign_keys_are_enforced_on_sqlite(tmp_path: Path) -> None:
    async with opened(f"sqlite:///{tmp_path}/keys.db") as database, database.reading() as session:
        assert await session.scalar(text("PRAGMA foreign_keys")) == 1
        assert await session.scalar(text("PRAGMA journal_mode")) == "wal"


async def test_a_file_that_is_no_database_is_trouble_not_a_wrong_key(
    tmp_path: Path, clock: ManualClock
) -> None:
    (tmp_path / "keys.db").write_bytes(b"no database" * 1000)
    async with opened_store(f"sqlite:///{tmp_path}/keys.db", clock) as (store, _):
        with pytest.raises(BackendUnavailable):
            await store.authenticate(ApiKey.generate().reveal())


async def test_a_folder_in_the_files_place_is_trouble(tmp_path: Path, clock: ManualClock) -> None:
    async with opened_store(f"sqlite:///{tmp_path}", clock) as (store, _):
        with pytest.raises(BackendUnavailable):
            await store.authenticate(ApiKey.generate().reveal())


async def test_a_missing_folder_is_made(tmp_path: Path) -> None:
    async with opened(f"sqlite:///{tmp_path}/a/b/keys.db") as database:
        await database.prepare()

    assert (tmp_path / "a/b/keys.db").is_file()


async def test_a_missing_database_is_trouble(postgresql: Server, clock: ManualClock) -> None:
    async with opened_store(postgresql.url_of("never_made"), clock) as (store, _):
        with pytest.raises(BackendUnavailable):
            await store.authenticate(ApiKey.generate().reveal())


async def test_a_refused_connection_is_trouble(clock: ManualClock) -> None:
    async with opened_store("postgresql://postgres@127.0.0.1:1/keys", clock) as (store, _):
        with pytest.raises(BackendUnavailable):
            await store.authenticate(ApiKey.generate().reveal())


async def test_a_restarted_server_is_found_again(postgresql: Server, clock: ManualClock) -> None:
    async with opened_store(postgresql.new_database("restarted"), clock) as (store, registry):
        issued = await registry.create(actor=ACTOR, user="ada", tier="free")
        await store.authenticate(issued.api_key.reveal())
        postgresql.stop()
        try:
            clock.advance(1)
            with pytest.raises(BackendUnavailable):
                await store.authenticate(issued.api_key.reveal())
        finally:
            postgresql.start()

        assert (await store.authenticate(issued.api_key.reveal())).key_id == issued.record.id


async def test_a_restart_between_two_requests_fails_neither(postgresql: Server, clock: ManualClock) -> None:
    async with opened_store(postgresql.new_database("unnoticed"), clock) as (store, registry):
        issued = await registry.create(actor=ACTOR, user="ada", tier="free")
        await store.authenticate(issued.api_key.reveal())

        postgresql.stop()
        postgresql.start()
        clock.advance(1)

        assert (await store.authenticate(issued.api_key.reveal())).key_id == issued.record.id


async def test_a_frozen_server_is_given_up_in_time(postgresql: Server, clock: ManualClock) -> None:
    async with opened_store(postgresql.new_database("frozen"), clock) as (store, registry):
        issued = await registry.create(actor=ACTOR, user="ada", tier="free")
        await store.authenticate(issued.api_key.reveal())
        clock.advance(1)
        postgresql.freeze()
        try:
            began = time.monotonic()
            answers = await asyncio.gather(
                *(store.authenticate(issued.api_key.reveal()) for _ in range(20)), return_exceptions=True
            )
            took_seconds = time.monotonic() - began
        finally:
            postgresql.thaw()

        assert {type(answer) for answer in answers} == {BackendUnavailable}
        assert took_seconds < LOOK_UP_TIMEOUT_SECONDS + 2
        assert (await store.authenticate(issued.api_key.reveal())).key_id == issued.record.id


SAID_WRONGLY = [
    ("postgresql", "SELECT CAST(:text AS text)", {"text": "a\0b"}),  # no text of PostgreSQL's
    ("postgresql", "SELECT 1 WHERE :number = 1", {"number": "one"}),  # refused by the driver
    ("postgresql", "SELECT 1 / 0", {}),
    ("postgresql", "SELECT colour FROM api_keys", {}),
    ("postgresql", "SELECT FROM WHERE", {}),
    ("sqlite", "INSERT INTO disabled_users VALUES ('ada', NULL)", {}),
    ("sqlite", "SELECT :text", {}),  # with nothing for it
]


@pytest.mark.parametrize(("kind", "statement", "values"), SAID_WRONGLY)
async def test_what_was_said_wrongly_is_no_trouble_of_the_database(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, statement: str, values: dict[str, str]
) -> None:
    url = (
        f"sqlite:///{tmp_path}/keys.db"
        if kind == "sqlite"
        else request.getfixturevalue("postgresql").new_database(f"wrong_{time.monotonic_ns()}")
    )
    async with opened(url) as database:
        with pytest.raises(StatementError):
            async with database.writing() as session:
                await session.execute(text(statement), values)
        assert await database.answers()


async def test_tables_of_somebody_elses_are_trouble(postgresql: Server) -> None:
    url = postgresql.new_database("foreign")
    async with opened(url) as database:
        async with database._engine.begin() as connection:
            await connection.execute(text("CREATE TABLE api_keys (id text)"))

        with pytest.raises(BackendUnavailable):
            await database.prepare()
        assert not await database.answers()


async def test_no_error_of_asyncpg_passes_untranslated() -> None:
    errors = [
        error
        for error in vars(asyncpg.exceptions).values()
        if isinstance(error, type) and issubclass(error, Exception) and not issubclass(error, Warning)
    ]
    assert len(errors) > 200
    async with opened("postgresql:///never_asked") as database:
        for error in errors:
            with pytest.raises(BackendUnavailable), database.errors():
                raise error("as the driver would")
