"""API keys in a dictionary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from pydantic import SecretStr

from serving.domain import key_change
from serving.domain.api_key import ApiKey, KeyHasher
from serving.domain.key_change import AuditRow, KeyChange
from serving.domain.key_record import (
    IssuedKey,
    KeyRecord,
    authenticated,
    checked_name,
    issue_key,
    rotate_key,
)
from serving.domain.tenant import Principal, Tier
from serving.errors import OperatorError, UnknownKey
from serving.ports import Clock


class InMemoryKeyStore:
    """`KeyStore` and `KeyAdministration` at once; it needs no cache, so every change counts at once."""

    def __init__(self, *, server_secret: SecretStr, tiers: Mapping[str, Tier], clock: Clock) -> None:
        self._hasher = KeyHasher(server_secret)
        self._tiers = tiers
        self._clock = clock
        self._records: dict[str, KeyRecord] = {}
        self._disabled_users: set[str] = set()
        self._changes: list[KeyChange] = []

    def add(self, record: KeyRecord) -> None:
        """As it is, without a row in the audit table."""
        self._records[record.id] = record

    async def authenticate(self, api_key: str) -> Principal:
        key = ApiKey.parse(api_key)
        now = self._clock.now()
        opened = (
            record
            for record in self._records.values()
            if any(secret.prefix == key.prefix for secret in record.secrets)
        )
        record = next(opened, None)
        found = None if record is None else self._seen(record)
        principal = authenticated(found, key, hasher=self._hasher, tiers=self._tiers, now=now)
        self.add(replace(self._records[principal.key_id], last_used_at=now))
        return principal

    async def create(
        self,
        *,
        actor: str,
        user: str,
        tier: str,
        models: Iterable[str] | None = None,
        expires_at: datetime | None = None,
    ) -> IssuedKey:
        issued = issue_key(
            user=user,
            tier=tier,
            models=models,
            expires_at=expires_at,
            tiers=self._tiers,
            hasher=self._hasher,
            now=self._clock.now(),
        )
        if user in self._disabled_users:
            raise OperatorError(f"The user {user!r} is disabled; enable them before they get a key.")
        self._changes.append(key_change.created(issued, actor=actor))
        self.add(issued.record)
        return issued

    async def list(self, *, user: str | None = None) -> Sequence[KeyRecord]:
        records = (record for record in self._records.values() if user is None or record.user == user)
        return [self._seen(record) for record in sorted(records, key=lambda each: (each.created_at, each.id))]

    async def get(self, key_id: str) -> KeyRecord | None:
        record = self._records.get(key_id)
        return None if record is None else self._seen(record)

    async def revoke(self, key_id: str, *, actor: str) -> KeyRecord:
        record = self._known(key_id)
        if record.revoked_at is None:
            now = self._clock.now()
            self._changes.append(key_change.revoked(record, actor=actor, at=now))
            self.add(record.revoked(now))
        return self._known(key_id)

    async def rotate(self, key_id: str, *, actor: str, overlap: timedelta) -> IssuedKey:
        record = self._known(key_id)
        issued = rotate_key(record, overlap=overlap, hasher=self._hasher, now=self._clock.now())
        self._changes.append(key_change.rotated(issued, actor=actor))
        self.add(issued.record)
        return issued

    async def set_user_enabled(self, user: str, *, enabled: bool, actor: str) -> int:
        checked_name("A user", user)
        now = self._clock.now()
        keys = sum(record.state(now) in ("active", "disabled") for record in await self.list(user=user))
        if enabled == (user in self._disabled_users):
            change = key_change.user_switched(user, enabled=enabled, keys=keys, actor=actor, at=now)
            self._changes.append(change)
            self._disabled_users ^= {user}
        return keys

    async def history(
        self, *, key_id: str | None = None, user: str | None = None, limit: int = 1000
    ) -> Sequence[AuditRow]:
        rows = [AuditRow(number, change) for number, change in enumerate(self._changes, start=1)]
        if key_id is not None:
            record = self._records.get(key_id)
            rows = [row for row in rows if record is not None and row.change.keys.include(record)]
        if user is not None:
            rows = [row for row in rows if row.change.user == user]
        return rows[-limit:]

    def _known(self, key_id: str) -> KeyRecord:
        if key_id not in self._records:
            raise UnknownKey(key_id)
        return self._seen(self._records[key_id])

    def _seen(self, record: KeyRecord) -> KeyRecord:
        return replace(record, user_disabled=record.user in self._disabled_users)
