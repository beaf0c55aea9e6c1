"""What is kept of an issued key, and what that says of a caller who shows one."""

from __future__ import annotations

import hmac
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from serving.domain.api_key import ApiKey, KeyHasher, random_base62
from serving.domain.tenant import Principal, Tier
from serving.errors import InternalError, KeyExpired, KeyRevoked, OperatorError, Unauthenticated

KeyState = Literal["active", "expired", "revoked"]

ID_CHARACTERS = 16
MAX_NAME_CHARACTERS = 200

_HASH_OF_NO_KEY = "0" * 64


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """One issued key without its secret. Times are in UTC; `models` None means every model."""

    id: str
    prefix: str
    key_hash: str = field(repr=False)
    user: str
    tier: str
    models: frozenset[str] | None
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None

    def state(self, now: datetime) -> KeyState:
        if self.revoked_at is not None:
            return "revoked"
        if self.expires_at is not None and now >= self.expires_at:
            return "expired"
        return "active"

    def principal(self, tiers: Mapping[str, Tier], now: datetime) -> Principal:
        """Raises KeyRevoked, KeyExpired; InternalError where the operator removed the key's tier."""
        state = self.state(now)
        if state == "revoked":
            raise KeyRevoked
        if state == "expired":
            raise KeyExpired
        tier = tiers.get(self.tier)
        if tier is None:
            raise InternalError from LookupError(
                f"key {self.id} is in the tier {self.tier!r}, which does not exist"
            )
        return Principal(self.id, self.user, tier, self.models, self.expires_at)


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A new key: the only moment at which its text is known."""

    record: KeyRecord
    api_key: ApiKey


def authenticated(record: KeyRecord | None, key: ApiKey, hasher: KeyHasher) -> KeyRecord:
    """The record that `key` proves to own. Raises Unauthenticated, in the same time for every wrong key."""
    kept_hash = _HASH_OF_NO_KEY if record is None else record.key_hash
    if not hmac.compare_digest(hasher.hash(key), kept_hash) or record is None:
        raise Unauthenticated("This API key is unknown.")
    return record


def issue_key(
    *,
    user: str,
    tier: str,
    models: Iterable[str] | None,
    expires_at: datetime | None,
    tiers: Collection[str],
    hasher: KeyHasher,
    now: datetime,
) -> IssuedKey:
    """Raises OperatorError, saying what would be accepted, for a key that nobody could use."""
    if tier not in tiers:
        raise OperatorError(f"There is no tier {tier!r}; the tiers are {', '.join(sorted(tiers))}.")
    key = ApiKey.generate()
    record = KeyRecord(
        id=f"key_{random_base62(ID_CHARACTERS)}",
        prefix=key.prefix,
        key_hash=hasher.hash(key),
        user=_name("user", user),
        tier=tier,
        models=_allowed_models(models),
        created_at=now,
        expires_at=_future(expires_at, now),
    )
    return IssuedKey(record, key)


def _name(what: str, name: str) -> str:
    if not name.strip() or not name.isprintable() or len(name) > MAX_NAME_CHARACTERS:
        raise OperatorError(f"A {what} is named with 1 to {MAX_NAME_CHARACTERS} printable characters.")
    return name


def _allowed_models(models: Iterable[str] | None) -> frozenset[str] | None:
    if models is None:
        return None
    allowed = frozenset(_name("model", model) for model in models)
    if not allowed:
        raise OperatorError("Name at least one model, or leave the models out to allow every one.")
    return allowed


def _future(expires_at: datetime | None, now: datetime) -> datetime | None:
    if expires_at is not None and expires_at.utcoffset() is None:
        raise OperatorError("The expiry needs a time zone.")
    if expires_at is not None and expires_at <= now:
        raise OperatorError("The expiry lies in the past.")
    return expires_at
