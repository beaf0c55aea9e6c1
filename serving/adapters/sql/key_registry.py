"""Issuing, listing and revoking keys in the SQL database."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from pydantic import SecretStr
from sqlalchemy import select, update

from serving.adapters.sql.database import Database
from serving.adapters.sql.tables import ApiKeyRow
from serving.domain.api_key import KeyHasher
from serving.domain.key_record import IssuedKey, KeyRecord, issue_key
from serving.domain.tenant import Tier
from serving.errors import OperatorError
from serving.ports import Clock


class KeyRegistry:
    """What the owner of the gateway does with keys. Every method raises BackendUnavailable."""

    def __init__(
        self, database: Database, *, server_secret: SecretStr, tiers: Mapping[str, Tier], clock: Clock
    ) -> None:
        """Raises OperatorError for a secret that is too short."""
        self._database = database
        self._hasher = KeyHasher(server_secret)
        self._tiers = tiers
        self._clock = clock

    async def create(
        self,
        *,
        user: str,
        tier: str,
        models: Iterable[str] | None = None,
        expires_at: datetime | None = None,
    ) -> IssuedKey:
        """`models` None allows every model. Raises OperatorError for what no key can have."""
        issued = issue_key(
            user=user,
            tier=tier,
            models=models,
            expires_at=expires_at,
            tiers=self._tiers,
            hasher=self._hasher,
            now=self._clock.now(),
        )
        async with self._database.writing() as session:
            session.add(ApiKeyRow.of(issued.record))
        return issued

    async def list(self) -> Sequence[KeyRecord]:
        """Every key, also revoked ones, oldest first."""
        async with self._database.reading() as session:
            rows = await session.scalars(select(ApiKeyRow).order_by(ApiKeyRow.created_at, ApiKeyRow.id))
            return [row.record() for row in rows]

    async def revoke(self, key_id: str) -> KeyRecord:
        """The key as it is now; the first revocation's time stays. Raises OperatorError for an unknown id."""
        async with self._database.writing() as session:
            await session.execute(
                update(ApiKeyRow)
                .where(ApiKeyRow.id == key_id, ApiKeyRow.revoked_at.is_(None))
                .values(revoked_at=self._clock.now())
            )
            row = await session.get(ApiKeyRow, key_id)
        if row is None:
            raise OperatorError(f"There is no key {key_id!r}.")
        return row.record()
