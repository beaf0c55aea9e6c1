"""What owners do with keys, in the SQL database: each change with its row of the audit table."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

from pydantic import SecretStr
from sqlalchemy import and_, delete, insert, or_, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from serving.adapters.key_changes import KeyChangePublisher
from serving.adapters.sql.database import Database
from serving.adapters.sql.key_tables import (
    ApiKeyRow,
    DisabledUserRow,
    KeyChangeRow,
    KeySecretRow,
    all_keys,
    audit_row,
    records_of,
    row_of_change,
    row_of_key,
    rows_of_secrets,
)
from serving.adapters.sql.key_watch import LOOK_TIMEOUT_SECONDS, MAX_ANSWER_AGE_SECONDS
from serving.adapters.sql.subscriptions import note_prices, prices_per_month
from serving.domain import key_change
from serving.domain.api_key import KeyHasher
from serving.domain.key_change import AuditRow, ChangedKeys, KeyChange
from serving.domain.key_record import IssuedKey, KeyRecord, checked_name, issue_key, rotate_key
from serving.domain.tenant import Tier
from serving.errors import BackendUnavailable, OperatorError, UnknownKey
from serving.ports import Clock

UNPUBLISHED_SECONDS = MAX_ANSWER_AGE_SECONDS + LOOK_TIMEOUT_SECONDS
"""How long a change that could not be published stands before it counts as made: for as long as a gateway may
take to find the database closed after it has last believed anything.
"""


class KeyRegistry:
    """`KeyAdministration` over SQL. Changes wait for each other, which makes the ids of the audit table count
    up in the order of the commits: what gateways rely on who look for rows behind the last one they know.
    """

    def __init__(
        self,
        database: Database,
        *,
        server_secret: SecretStr,
        tiers: Mapping[str, Tier],
        clock: Clock,
        publisher: KeyChangePublisher,
        wait: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """publisher: told of each change to a key that gateways may know, once it is committed. wait: for so
        many seconds.

        Raises OperatorError for a secret that is too short.
        """
        self._database = database
        self._hasher = KeyHasher(server_secret)
        self._tiers = tiers
        self._clock = clock
        self._publisher = publisher
        self._wait = wait

    async def create(
        self,
        *,
        actor: str,
        user: str,
        tier: str,
        models: Iterable[str] | None = None,
        expires_at: datetime | None = None,
    ) -> IssuedKey:
        async with self._changing() as session:
            issued = issue_key(
                user=user,
                tier=tier,
                models=models,
                expires_at=expires_at,
                tiers=self._tiers,
                hasher=self._hasher,
                now=self._clock.now(),
            )
            if await session.get(DisabledUserRow, user) is not None:
                raise OperatorError(f"The user {user!r} is disabled; enable them before they get a key.")
            await session.execute(insert(ApiKeyRow).values(row_of_key(issued.record)))
            await session.execute(insert(KeySecretRow), rows_of_secrets(issued.record))
            await _write_down(session, key_change.created(issued, actor=actor))
            terms = prices_per_month([self._tiers[tier]])
            await note_prices(session, terms, issued.record.created_at)
        return issued  # of which no gateway can have kept anything, so nobody needs to be told

    async def list(self, *, user: str | None = None) -> Sequence[KeyRecord]:
        query = all_keys() if user is None else all_keys().where(ApiKeyRow.user == user)
        async with self._database.reading() as session:
            return records_of(await session.execute(query))

    async def get(self, key_id: str) -> KeyRecord | None:
        async with self._database.reading() as session:
            return await _record(session, key_id)

    async def revoke(self, key_id: str, *, actor: str) -> KeyRecord:
        async with self._changing() as session:
            record = await _known(session, key_id)
            if record.revoked_at is None:
                now = self._clock.now()
                record = record.revoked(now)
                await session.execute(
                    update(ApiKeyRow).where(ApiKeyRow.id == key_id).values(revoked_at=record.revoked_at)
                )
                await _write_down(session, key_change.revoked(record, actor=actor, at=now))
        # Also for one that was revoked before: perhaps that could not be published.
        await self._tell(ChangedKeys(record.user, record.id))
        return record

    async def rotate(self, key_id: str, *, actor: str, overlap: timedelta) -> IssuedKey:
        async with self._changing() as session:
            record = await _known(session, key_id)
            issued = rotate_key(record, overlap=overlap, hasher=self._hasher, now=self._clock.now())
            await session.execute(delete(KeySecretRow).where(KeySecretRow.key_id == key_id))
            await session.execute(insert(KeySecretRow), rows_of_secrets(issued.record))
            change = key_change.rotated(issued, actor=actor)
            await _write_down(session, change)
        await self._tell(change.keys)
        return issued

    async def set_user_enabled(self, user: str, *, enabled: bool, actor: str) -> int:
        checked_name("A user", user)
        async with self._changing() as session:
            now = self._clock.now()
            records = records_of(await session.execute(all_keys().where(ApiKeyRow.user == user)))
            keys = sum(record.state(now) in ("active", "disabled") for record in records)
            disabled = await session.get(DisabledUserRow, user)
            if enabled == (disabled is not None):
                if enabled:
                    await session.execute(delete(DisabledUserRow).where(DisabledUserRow.user == user))
                else:
                    await session.execute(insert(DisabledUserRow).values(user=user, disabled_at=now))
                change = key_change.user_switched(user, enabled=enabled, keys=keys, actor=actor, at=now)
                await _write_down(session, change)
        await self._tell(ChangedKeys(user))
        return keys

    async def history(
        self, *, key_id: str | None = None, user: str | None = None, limit: int = 1000
    ) -> Sequence[AuditRow]:
        query = select(KeyChangeRow).order_by(KeyChangeRow.id.desc()).limit(limit)
        if key_id is not None:
            owner = select(ApiKeyRow.user).where(ApiKeyRow.id == key_id).scalar_subquery()
            of_its_user = and_(KeyChangeRow.key_id.is_(None), KeyChangeRow.user == owner)
            query = query.where(or_(KeyChangeRow.key_id == key_id, of_its_user))
        if user is not None:
            query = query.where(KeyChangeRow.user == user)
        async with self._database.reading() as session:
            rows = list(await session.scalars(query))
        return [audit_row(row) for row in reversed(rows)]

    async def _tell(self, keys: ChangedKeys) -> None:
        """Returns when no gateway believes for longer than a second what it knew of these keys.

        Raises BackendUnavailable where that cannot be promised; the change counts all the same.
        """
        if await self._publisher.publish(keys):
            return
        # Each gateway looks meanwhile, and finds the change, or has stopped to believe what it keeps: unless
        # the database was closed just then. It was not, where it still answers.
        await self._wait(UNPUBLISHED_SECONDS)
        if not await self._database.answers():
            raise BackendUnavailable(
                "The change is made, but not every gateway may know of it: neither Redis nor the database "
                "answers. Do it again when one of them does."
            )

    @asynccontextmanager
    async def _changing(self) -> AsyncIterator[AsyncSession]:
        """A transaction that no other change runs beside; nobody who only reads waits for it."""
        async with self._database.writing() as session:
            if (await session.connection()).dialect.name == "sqlite":
                await session.execute(text("BEGIN IMMEDIATE"))
            else:
                await session.execute(text("LOCK TABLE key_changes IN EXCLUSIVE MODE"))
            yield session


async def _record(session: AsyncSession, key_id: str) -> KeyRecord | None:
    found = records_of(await session.execute(all_keys().where(ApiKeyRow.id == key_id)))
    return found[0] if found else None


async def _known(session: AsyncSession, key_id: str) -> KeyRecord:
    record = await _record(session, key_id)
    if record is None:
        raise UnknownKey(key_id)
    return record


async def _write_down(session: AsyncSession, change: KeyChange) -> None:
    await session.execute(insert(KeyChangeRow).values(row_of_change(change)))
