"""The tables of keys, the same on SQLite and PostgreSQL, and how rows of them become records.

::

    api_keys ─1─┬─n─ key_secrets       what a caller's key is looked up by
        user    └─── disabled_users    whoever is in it may use none of their keys
    key_changes                        the audit table; its ids count up in the order of the commits
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeAlias

from sqlalchemy import JSON, BigInteger, ForeignKey, Integer, Row, Select, String, select
from sqlalchemy.orm import Mapped, aliased, mapped_column

from serving.adapters.sql.base import Table, UtcDateTime
from serving.domain.key_change import AuditRow, KeyAction, KeyChange
from serving.domain.key_record import KeyRecord, KeySecret, by_age


class ApiKeyRow(Table):
    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    user: Mapped[str] = mapped_column(String(200), index=True)
    tier: Mapped[str] = mapped_column(String(32))
    models: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class KeySecretRow(Table):
    __tablename__ = "key_secrets"

    prefix: Mapped[str] = mapped_column(String(12), primary_key=True)
    key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"), index=True)
    key_hash: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class DisabledUserRow(Table):
    __tablename__ = "disabled_users"

    user: Mapped[str] = mapped_column(String(200), primary_key=True)
    disabled_at: Mapped[datetime] = mapped_column(UtcDateTime)


class KeyChangeRow(Table):
    __tablename__ = "key_changes"
    __table_args__ = {"sqlite_autoincrement": True}  # noqa: RUF012 - SQLAlchemy's own name; an id is never used again

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    actor: Mapped[str] = mapped_column(String(240))
    action: Mapped[str] = mapped_column(String(32))
    user: Mapped[str] = mapped_column(String(200), index=True)
    key_id: Mapped[str | None] = mapped_column(String(40), index=True)
    details: Mapped[dict[str, Any]] = mapped_column(JSON)


KeyRows: TypeAlias = "Select[ApiKeyRow, KeySecretRow, str]"


def all_keys() -> KeyRows:
    """A row for each secret, oldest keys first; the third is the user's name where it is disabled."""
    return (
        select(ApiKeyRow, KeySecretRow, DisabledUserRow.user)
        .join(KeySecretRow, KeySecretRow.key_id == ApiKeyRow.id)
        .outerjoin(DisabledUserRow, DisabledUserRow.user == ApiKeyRow.user)
        .order_by(ApiKeyRow.created_at, ApiKeyRow.id)
    )


def key_opened_by(prefix: str) -> KeyRows:
    shown = aliased(KeySecretRow)
    return all_keys().join(shown, shown.key_id == ApiKeyRow.id).where(shown.prefix == prefix)


def records_of(rows: Iterable[Row[ApiKeyRow, KeySecretRow, str | None]]) -> list[KeyRecord]:
    """In the order of the rows."""
    drafts: dict[str, _Draft] = {}
    for key, secret, disabled_user in rows:
        draft = drafts.setdefault(key.id, _Draft(key, user_disabled=disabled_user is not None))
        draft.secrets.append(KeySecret(secret.prefix, secret.key_hash, secret.created_at, secret.expires_at))
    return [draft.record() for draft in drafts.values()]


@dataclass(slots=True)
class _Draft:
    key: ApiKeyRow
    user_disabled: bool
    secrets: list[KeySecret] = field(default_factory=list)

    def record(self) -> KeyRecord:
        key = self.key
        return KeyRecord(
            id=key.id,
            user=key.user,
            tier=key.tier,
            models=None if key.models is None else frozenset(key.models),
            created_at=key.created_at,
            secrets=by_age(self.secrets),
            expires_at=key.expires_at,
            revoked_at=key.revoked_at,
            last_used_at=key.last_used_at,
            user_disabled=self.user_disabled,
        )


def row_of_key(record: KeyRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "user": record.user,
        "tier": record.tier,
        "models": None if record.models is None else sorted(record.models),
        "created_at": record.created_at,
        "expires_at": record.expires_at,
    }


def rows_of_secrets(record: KeyRecord) -> list[dict[str, Any]]:
    return [
        {
            "prefix": secret.prefix,
            "key_id": record.id,
            "key_hash": secret.key_hash,
            "created_at": secret.created_at,
            "expires_at": secret.expires_at,
        }
        for secret in record.secrets
    ]


def row_of_change(change: KeyChange) -> dict[str, Any]:
    return {
        "at": change.at,
        "actor": change.actor,
        "action": change.action,
        "user": change.user,
        "key_id": change.key_id,
        "details": dict(change.details),
    }


def audit_row(row: KeyChangeRow) -> AuditRow:
    action: KeyAction = row.action  # type: ignore[assignment]  # only `KeyChange` is ever written there
    return AuditRow(row.id, KeyChange(row.at, row.actor, action, row.user, row.key_id, row.details))
