"""Every database, however old, gets the tables that the models describe, and keeps what was in it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from serving.adapters.memory.clock import ManualClock
from serving.adapters.sql import schema
from serving.adapters.sql.base import UtcDateTime
from serving.adapters.sql.database import Database, parse_database_url
from serving.adapters.sql.key_tables import KeySecretRow
from serving.adapters.sql.ledger_tables import UsageEventRow
from serving.domain.api_key import ApiKey, KeyHasher
from serving.errors import BackendUnavailable, OperatorError
from tests.support.keys import SERVER_SECRET, registry_of, store_of

Result = TypeVar("Result")

PROJECT = Path(__file__).parents[2]
METADATA = UsageEventRow.metadata

OLD_METADATA = sa.MetaData(
    naming_convention={"pk": "pk_%(table_name)s", "uq": "uq_%(table_name)s_%(column_0_name)s"}
)
OLD_KEYS = sa.Table(
    "api_keys",
    OLD_METADATA,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("prefix", sa.String(12), unique=True, nullable=False),
    sa.Column("key_hash", sa.String(64), nullable=False),
    sa.Column("user", sa.String(200), nullable=False),
    sa.Column("tier", sa.String(32), nullable=False),
    sa.Column("models", sa.JSON(none_as_null=True)),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("expires_at", UtcDateTime),
    sa.Column("revoked_at", UtcDateTime),
)
"""What `create_all` made of the models before there were revisions."""

START = """
import asyncio, sys
from serving.adapters.sql.database import Database

async def main():
    database = Database(sys.argv[1])
    prepared = await database.answers()
    await database.close()
    print(f"prepared: {prepared}, alembic: {'alembic' in sys.modules}")

asyncio.run(main())
"""

MADE_AT = datetime(2026, 5, 1, 12, 30, 0, 123_456, tzinfo=UTC)


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(parse_database_url(database_url))
    yield engine
    await engine.dispose()


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Database]:
    database = Database(url)
    try:
        yield database
    finally:
        await database.close()


async def within(engine: AsyncEngine, work: Callable[[sa.Connection], Result]) -> Result:
    async with engine.begin() as connection:
        return await connection.run_sync(work)


async def make_old_database(engine: AsyncEngine, *keys: ApiKey) -> None:
    """Ada's keys; the first may use one model, the others any."""
    hasher = KeyHasher(SERVER_SECRET)
    rows = [
        {
            "id": f"key_{number}",
            "prefix": key.prefix,
            "key_hash": hasher.hash(key),
            "user": "ada",
            "tier": "pro",
            "models": None if number else ["shapes"],
            "created_at": MADE_AT,
        }
        for number, key in enumerate(keys)
    ]
    async with engine.begin() as connection:
        await connection.run_sync(OLD_METADATA.create_all)
        await connection.execute(sa.insert(OLD_KEYS), rows)


def described(connection: sa.Connection) -> dict[str, Any]:
    """All that a database knows of its tables, but the order of their columns."""
    seen = sa.inspect(connection)
    return {
        table: {
            "columns": {
                each["name"]: (repr(each["type"]), each["nullable"], each["default"])
                for each in seen.get_columns(table)
            },
            "key": seen.get_pk_constraint(table),
            "refers to": seen.get_foreign_keys(table),
            "unique": seen.get_unique_constraints(table),
            "indexes": sorted(seen.get_indexes(table), key=lambda index: str(index["name"])),
            "options": seen.get_table_options(table),
        }
        for table in seen.get_table_names()
        if table != "alembic_version"
    }


def made_anew(metadata: sa.MetaData) -> Callable[[sa.Connection], dict[str, Any]]:
    """How a database looks whose tables were all dropped, and made by `metadata`."""

    def make(connection: sa.Connection) -> dict[str, Any]:
        found = sa.MetaData()
        found.reflect(connection)
        found.drop_all(connection)
        metadata.create_all(connection)
        return described(connection)

    return make


def differences(connection: sa.Connection) -> list[Any]:
    return list(compare_metadata(MigrationContext.configure(connection), METADATA))


def revision(connection: sa.Connection) -> list[str]:
    return list(connection.scalars(sa.text("SELECT version_num FROM alembic_version")))


@pytest.mark.parametrize("is_old", [False, True], ids=["empty", "old"])
async def test_migrations_end_where_the_models_are(
    database_url: str, engine: AsyncEngine, is_old: bool
) -> None:
    if is_old:
        await make_old_database(engine, ApiKey.generate())
    async with opened(database_url) as database:
        await database.prepare()

    assert await within(engine, differences) == []
    assert await within(engine, revision) == [schema.REVISIONS[-1]]
    migrated = await within(engine, described)
    assert migrated == await within(engine, made_anew(METADATA))


async def test_the_first_revision_is_what_was_made_without_one(engine: AsyncEngine) -> None:
    def upgrade(connection: sa.Connection) -> dict[str, Any]:
        command.upgrade(config_for(connection), schema.BEFORE_REVISIONS)
        return described(connection)

    made = await within(engine, upgrade)

    assert made == await within(engine, made_anew(OLD_METADATA))


async def test_keys_of_an_old_database_work_on(
    database_url: str, engine: AsyncEngine, clock: ManualClock
) -> None:
    scoped, free = ApiKey.generate(), ApiKey.generate()
    await make_old_database(engine, scoped, free)
    async with opened(database_url) as database:
        store = store_of(database, clock)
        principals = [await store.authenticate(key.reveal()) for key in (scoped, free)]
        await store.close()
        records = await registry_of(database, clock).list()

    assert [(each.key_id, each.user, each.tier.name) for each in principals] == [
        ("key_0", "ada", "pro"),
        ("key_1", "ada", "pro"),
    ]
    assert [each.models for each in principals] == [frozenset({"shapes"}), None]
    assert [record.created_at for record in records] == [MADE_AT, MADE_AT]


async def test_a_database_that_a_newer_program_changed_is_left_alone(
    database_url: str, engine: AsyncEngine
) -> None:
    async with opened(database_url) as database:
        await database.prepare()
    async with engine.begin() as connection:
        await connection.execute(sa.text("UPDATE alembic_version SET version_num = '0999_of_the_future'"))
    before = await within(engine, described)

    async with opened(database_url) as database:
        with pytest.raises(OperatorError, match="'0999_of_the_future', which is newer than this program"):
            await database.prepare()
        assert await database.answers() is False

    assert await within(engine, described) == before


async def test_what_is_up_to_date_is_found_so_without_alembic(database_url: str) -> None:
    async with opened(database_url) as database:
        await database.prepare()

    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", START, database_url, stdout=asyncio.subprocess.PIPE, cwd=PROJECT
    )
    said, _ = await process.communicate()

    assert (process.returncode, said.decode().strip()) == (0, "prepared: True, alembic: False")


async def test_what_fails_half_way_leaves_the_database_as_it_was(
    database_url: str, engine: AsyncEngine, clock: ManualClock
) -> None:
    key = ApiKey.generate()
    await make_old_database(engine, key)
    async with engine.begin() as connection:  # in the way of the last revision
        await connection.execute(sa.text("CREATE TABLE usage_events (odd INTEGER)"))
    before = await within(engine, described)

    async with opened(database_url) as database:
        with pytest.raises(BackendUnavailable):
            await database.prepare()
        assert await within(engine, described) == before

        async with engine.begin() as connection:
            await connection.execute(sa.text("DROP TABLE usage_events"))
        store = store_of(database, clock)
        assert (await store.authenticate(key.reveal())).key_id == "key_0"
        await store.close()


async def test_foreign_keys_are_enforced_after_a_migration(tmp_path: Path) -> None:
    async with opened(f"sqlite:///{tmp_path}/keys.db") as database:
        with pytest.raises(sa.exc.IntegrityError):
            async with database.writing() as session:
                await session.execute(
                    sa.insert(KeySecretRow).values(
                        prefix="p", key_id="nobody", key_hash="h", created_at=MADE_AT
                    )
                )


async def test_there_is_no_way_back(engine: AsyncEngine, database_url: str) -> None:
    async with opened(database_url) as database:
        await database.prepare()

    with pytest.raises(OperatorError, match="restore a backup"):
        await within(engine, lambda connection: command.downgrade(config_for(connection), "-1"))

    assert await within(engine, differences) == []


def test_files_are_named_as_their_revisions_and_follow_each_other() -> None:
    script = ScriptDirectory(str(schema.MIGRATIONS))

    newest_first = list(script.walk_revisions())

    assert [each.revision for each in reversed(newest_first)] == list(schema.REVISIONS)
    assert [Path(each.path).stem for each in newest_first] == [each.revision for each in newest_first]


def config_for(connection: sa.Connection) -> Config:
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(schema.MIGRATIONS))
    return config
