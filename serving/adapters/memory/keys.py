"""API keys in a dictionary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pydantic import SecretStr

from serving.domain.api_key import ApiKey, KeyHasher
from serving.domain.key_record import KeyRecord, authenticated
from serving.domain.tenant import Principal, Tier
from serving.ports import Clock


class InMemoryKeyStore:
    """`KeyStore` over the records it is given; it needs no cache, so every change counts at once."""

    def __init__(self, *, server_secret: SecretStr, tiers: Mapping[str, Tier], clock: Clock) -> None:
        self._hasher = KeyHasher(server_secret)
        self._tiers = tiers
        self._clock = clock
        self._records: dict[str, KeyRecord] = {}

    def add(self, record: KeyRecord) -> None:
        self._records[record.prefix] = record

    def revoke(self, key_id: str) -> None:
        """Raises KeyError for an unknown id."""
        by_id = {record.id: record for record in self._records.values()}
        record = by_id[key_id]
        self.add(replace(record, revoked_at=record.revoked_at or self._clock.now()))

    async def authenticate(self, api_key: str) -> Principal:
        key = ApiKey.parse(api_key)
        record = authenticated(self._records.get(key.prefix), key, self._hasher)
        return record.principal(self._tiers, self._clock.now())
