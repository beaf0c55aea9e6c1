"""Connections to the SQL database: timeouts, tables made at first use, one translation of its errors."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    NoSuchModuleError,
    ProgrammingError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine

from serving.adapters.sql import schema
from serving.errors import BackendUnavailable, OperatorError

CONNECT_TIMEOUT_SECONDS = 2.0
COMMAND_TIMEOUT_SECONDS = 5.0
POOL_TIMEOUT_SECONDS = 2.0
PREPARE_TIMEOUT_SECONDS = 20.0

_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
    "postgresql+asyncpg": "postgresql+asyncpg",
}
_STATES_OF_BUGS = ("22", "23", "42")  # data, constraints, statements: PostgreSQL, appendix A
_STATES_OF_THE_OPERATOR = ("42P01", "42501")  # a table is away, or a right to it, and may come back
_SCHEMA_LOCK = 0x76697369  # any number that only we use for a PostgreSQL advisory lock

log = logging.getLogger(__name__)


class Database:
    """Connections to one database, whose tables are brought to their newest form at first use.

    Whoever else starts just then waits, or finds it done.
    """

    def __init__(self, url: str, *, command_timeout_seconds: float = COMMAND_TIMEOUT_SECONDS) -> None:
        """command_timeout_seconds: of a statement; more for those that read all there is.

        Raises OperatorError, without quoting a password, for a URL that names no database of ours.
        """
        self.url = parse_database_url(url)
        self._engine = _engine(self.url, command_timeout_seconds)
        self._reading = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        self._prepared = False
        self._preparing = asyncio.Lock()
        self._trouble: tuple[type[Exception], ...] = (
            *_driver_errors(self.url),
            DBAPIError,
            PoolTimeoutError,
            OSError,
            TimeoutError,
        )

    async def prepare(self) -> None:
        """Bring the tables to their newest form; costs two look-ups where they are in it.

        Raises BackendUnavailable, and is tried again at the next use; OperatorError for a database that a
        newer program has changed.
        """
        async with self._preparing:
            if not self._prepared:
                # Statements fail here where somebody else's tables are in the way: no bug of ours.
                with self.errors(bugs_pass=False):
                    async with asyncio.timeout(PREPARE_TIMEOUT_SECONDS):
                        await self._bring_up_to_date()
                self._prepared = True

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncSession]:
        """A session for single statements that only read: one round trip each. Raises BackendUnavailable."""
        await self.prepare()
        with self.errors():
            async with AsyncSession(self._reading, expire_on_commit=False) as session:
                yield session

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncSession]:
        """One transaction, committed at the end of the block. Raises BackendUnavailable."""
        await self.prepare()
        with self.errors():
            async with AsyncSession(self._engine, expire_on_commit=False) as session, session.begin():
                yield session

    async def answers(self) -> bool:
        try:
            async with self.reading() as session:
                await session.execute(text("SELECT 1"))
        except (BackendUnavailable, OperatorError):
            return False
        return True

    async def close(self) -> None:
        await self._engine.dispose()

    @contextmanager
    def errors(self, *, bugs_pass: bool = True) -> Iterator[None]:
        """The one place where a driver's exceptions become ours.

        bugs_pass: what says that we asked for the impossible stays what it is. The database is well, and
        asking again would not help.
        """
        try:
            yield
        except self._trouble as exc:
            if bugs_pass and is_a_bug(exc):
                raise
            log.warning("database failed", extra={"facts": {"error": type(exc).__name__, "why": str(exc)}})
            raise BackendUnavailable("The database does not answer.") from exc

    async def _bring_up_to_date(self) -> None:
        if self.url.get_backend_name() == "sqlite":
            await self._prepare_sqlite_file()
        async with self._reading.connect() as connection:
            if await connection.run_sync(schema.is_newest):
                return
        async with self._engine.connect() as connection, _changing_schema(connection):
            await connection.run_sync(schema.upgrade)

    async def _prepare_sqlite_file(self) -> None:
        await asyncio.to_thread(Path(str(self.url.database)).parent.mkdir, parents=True, exist_ok=True)
        # The journal mode stays with the file, so it is set once and not per connection.
        async with self._reading.connect() as connection:
            await connection.execute(text("PRAGMA journal_mode=WAL"))


def parse_database_url(url: str) -> URL:
    """`sqlite:///file`, `postgresql://…`, with or without our driver's name. Raises OperatorError."""
    try:
        parsed = make_url(url)
        driver = _DRIVERS[parsed.drivername]
    except (ArgumentError, KeyError, ValueError):
        raise OperatorError("The database URL starts with sqlite:/// or postgresql://.") from None
    if driver.startswith("sqlite") and parsed.database in (None, "", ":memory:"):
        raise OperatorError("The SQLite URL names no file, so every key would be lost with the process.")
    return parsed.set(drivername=driver)


def is_a_bug(exc: Exception) -> bool:
    """Whether a value, a statement or a row was refused that no database would take."""
    if not isinstance(exc, DBAPIError):
        return False
    state = str(getattr(exc.orig, "sqlstate", None) or "")
    if state in _STATES_OF_THE_OPERATOR:
        return False
    if isinstance(exc, DataError | IntegrityError | ProgrammingError):
        return True
    # asyncpg's driver has no such classes for most of them, but what PostgreSQL called them.
    refused_by_the_driver = isinstance(getattr(exc.orig, "__cause__", None), ValueError | TypeError)
    return state.startswith(_STATES_OF_BUGS) or refused_by_the_driver


def _engine(url: URL, command_timeout_seconds: float) -> AsyncEngine:
    common: dict[str, Any] = {"pool_timeout": POOL_TIMEOUT_SECONDS, "hide_parameters": True}
    try:
        if url.get_backend_name() == "sqlite":
            engine = create_async_engine(url, connect_args={"timeout": command_timeout_seconds}, **common)
            event.listen(engine.sync_engine, "connect", _begin_with_foreign_keys)
            return engine
        timeouts = {"timeout": CONNECT_TIMEOUT_SECONDS, "command_timeout": command_timeout_seconds}
        return create_async_engine(url, connect_args=timeouts, pool_pre_ping=True, **common)
    except (ModuleNotFoundError, NoSuchModuleError) as exc:
        raise OperatorError("PostgreSQL needs its driver: install visiongate[postgresql].") from exc


def _begin_with_foreign_keys(connection: Any, _record: object) -> None:
    connection.execute("PRAGMA foreign_keys=ON").close()


def _driver_errors(url: URL) -> tuple[type[Exception], ...]:
    # SQLAlchemy translates what a statement raises, but not what asyncpg raises while it connects.
    if url.get_backend_name() != "postgresql":
        return ()
    import asyncpg  # noqa: PLC0415 - optional, for this database alone

    return (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


@asynccontextmanager
async def _changing_schema(connection: AsyncConnection) -> AsyncIterator[None]:
    """One transaction, which one process at a time is in."""
    if connection.dialect.name != "sqlite":
        async with connection.begin():
            await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _SCHEMA_LOCK})
            yield
        return
    # SQLite changes a table by putting another in its place, which rows that refer to it would not allow.
    await _enforce_foreign_keys(connection, enforce=False)
    try:
        async with connection.begin():
            await connection.execute(text("BEGIN IMMEDIATE"))
            yield
            if broken := (await connection.execute(text("PRAGMA foreign_key_check"))).all():
                raise OperatorError(f"The database has rows that refer to missing ones: {broken[:10]}")
    finally:
        await _enforce_foreign_keys(connection, enforce=True)


async def _enforce_foreign_keys(connection: AsyncConnection, *, enforce: bool) -> None:
    await connection.execute(text(f"PRAGMA foreign_keys={'ON' if enforce else 'OFF'}"))
    await connection.commit()  # which the driver has not begun; SQLAlchemy counts one all the same
