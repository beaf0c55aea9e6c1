"""Both sides of API keys, in every form: who issues and revokes them, and the gateway that is shown one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime

from pydantic import SecretStr
from sqlalchemy import delete

from serving.adapters.key_changes import KeyChangePublisher, LocalKeyChanges
from serving.adapters.memory.keys import InMemoryKeyStore
from serving.adapters.sql.database import Database
from serving.adapters.sql.key_registry import KeyRegistry
from serving.adapters.sql.key_store import SqlKeyStore
from serving.adapters.sql.key_tables import ApiKeyRow, DisabledUserRow, KeyChangeRow, KeySecretRow
from serving.adapters.tiers import load_tiers
from serving.domain.key_change import ChangedKeys
from serving.domain.key_record import IssuedKey
from serving.ports import Clock, KeyAdministration, KeyStore

SERVER_SECRET = SecretStr("a secret for tests only")
TIERS = load_tiers(None)
ACTOR = "cli:tester"


class Unpublished:
    """`KeyChangePublisher` whose every message is lost."""

    async def publish(self, keys: ChangedKeys) -> bool:
        return False


@dataclass(frozen=True)
class House:
    """store: of a gateway that runs for a while. another_store: of one that starts now."""

    keys: KeyAdministration
    store: KeyStore
    another_store: Callable[[], KeyStore]

    async def create(
        self,
        *,
        user: str = "ada",
        tier: str = "pro",
        models: Iterable[str] | None = None,
        expires_at: datetime | None = None,
    ) -> IssuedKey:
        return await self.keys.create(actor=ACTOR, user=user, tier=tier, models=models, expires_at=expires_at)


def memory_house(clock: Clock) -> House:
    both = InMemoryKeyStore(server_secret=SERVER_SECRET, tiers=TIERS, clock=clock)
    return House(keys=both, store=both, another_store=lambda: both)


@asynccontextmanager
async def sql_house(url: str, clock: Clock) -> AsyncIterator[House]:
    """Without any key, whatever the last test left. Nothing is published: what holds, holds without Redis."""
    async with AsyncExitStack() as stack:
        database = Database(url)
        stack.push_async_callback(database.close)
        async with database.writing() as session:
            for table in (KeySecretRow, ApiKeyRow, DisabledUserRow, KeyChangeRow):
                await session.execute(delete(table))

        def another_store() -> SqlKeyStore:
            store = store_of(database, clock)
            stack.push_async_callback(store.close)
            return store

        yield House(registry_of(database, clock), another_store(), another_store)


async def no_wait(seconds: float) -> None:
    """For a registry whose gateways look when a test has them look."""


def registry_of(
    database: Database,
    clock: Clock,
    publisher: KeyChangePublisher | None = None,
    wait: Callable[[float], Awaitable[None]] = no_wait,
) -> KeyRegistry:
    """publisher: without one, every message is lost."""
    return KeyRegistry(
        database,
        server_secret=SERVER_SECRET,
        tiers=TIERS,
        clock=clock,
        publisher=publisher or Unpublished(),
        wait=wait,
    )


def published_to(database: Database, clock: Clock, *stores: SqlKeyStore) -> KeyRegistry:
    return registry_of(database, clock, LocalKeyChanges(*stores))


def store_of(database: Database, clock: Clock) -> SqlKeyStore:
    return SqlKeyStore(database, server_secret=SERVER_SECRET, tiers=TIERS, clock=clock)
