"""What was done to a key or a user: a row of the audit table, and what a gateway has to forget for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from serving.domain.key_record import MAX_ACTOR_CHARACTERS, IssuedKey, KeyRecord, checked_name

KeyAction = Literal["created", "rotated", "revoked", "user_disabled", "user_enabled"]


@dataclass(frozen=True, slots=True)
class ChangedKeys:
    """What a change concerns: one key, or, where `key_id` is None, every key of the user."""

    user: str
    key_id: str | None = None

    def include(self, record: KeyRecord) -> bool:
        return record.user == self.user if self.key_id is None else record.id == self.key_id


@dataclass(frozen=True, slots=True)
class KeyChange:
    """actor: who did it, say `cli:ada`. details: JSON that holds no secret.

    Raises OperatorError for an actor that nobody could read.
    """

    at: datetime
    actor: str
    action: KeyAction
    user: str
    key_id: str | None = None
    details: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checked_name("An actor", self.actor, most_characters=MAX_ACTOR_CHARACTERS)

    @property
    def keys(self) -> ChangedKeys:
        return ChangedKeys(self.user, self.key_id)


@dataclass(frozen=True, slots=True)
class AuditRow:
    """id: counts up in the order in which the changes came to count."""

    id: int
    change: KeyChange


def created(issued: IssuedKey, *, actor: str) -> KeyChange:
    record = issued.record
    details = {
        "prefix": record.prefix,
        "tier": record.tier,
        "models": None if record.models is None else sorted(record.models),
        "expires_at": _text(record.expires_at),
    }
    return KeyChange(record.created_at, actor, "created", record.user, record.id, details)


def rotated(issued: IssuedKey, *, actor: str) -> KeyChange:
    """With the ends of all secrets that the key has now, by their prefixes."""
    record = issued.record
    ends = {secret.prefix: _text(secret.expires_at) for secret in record.secrets}
    newest = record.secrets[-1]
    details = {"prefix": newest.prefix, "secrets_end": ends}
    return KeyChange(newest.created_at, actor, "rotated", record.user, record.id, details)


def revoked(record: KeyRecord, *, actor: str, at: datetime) -> KeyChange:
    prefixes = [secret.prefix for secret in record.secrets]
    return KeyChange(at, actor, "revoked", record.user, record.id, {"prefixes": prefixes})


def user_switched(user: str, *, enabled: bool, keys: int, actor: str, at: datetime) -> KeyChange:
    return KeyChange(at, actor, "user_enabled" if enabled else "user_disabled", user, None, {"keys": keys})


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
