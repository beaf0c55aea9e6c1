"""Keys as those get them who asked, over HTTP and on the command line: JSON, never with a hash.

Moments are RFC 3339 in UTC, to the microsecond where there are any: `2026-11-21T13:00:00Z`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from serving.domain.key_change import AuditRow
from serving.domain.key_record import IssuedKey, KeyRecord, KeySecret


def key_form(record: KeyRecord, now: datetime) -> dict[str, Any]:
    return {
        "id": record.id,
        "prefix": prefix_form(record.prefix),
        "user": record.user,
        "tier": record.tier,
        "models": None if record.models is None else sorted(record.models),
        "state": record.state(now),
        "created_at": _moment(record.created_at),
        "expires_at": _moment(record.expires_at),
        "revoked_at": _moment(record.revoked_at),
        "last_used_at": _moment(record.last_used_at),
        "secrets": [_secret_form(secret) for secret in record.secrets],
    }


def issued_key_form(issued: IssuedKey, now: datetime) -> dict[str, Any]:
    """With the key's text: for whoever asked for the key, and for nobody after them."""
    return {**key_form(issued.record, now), "api_key": issued.api_key.reveal()}


def change_form(row: AuditRow) -> dict[str, Any]:
    change = row.change
    return {
        "id": row.id,
        "at": _moment(change.at),
        "actor": change.actor,
        "action": change.action,
        "key_id": change.key_id,
        "user": change.user,
        "details": dict(change.details),
    }


def prefix_form(prefix: str) -> str:
    """What the key's text begins with."""
    return f"pk_{prefix}"


def _secret_form(secret: KeySecret) -> dict[str, Any]:
    return {
        "prefix": prefix_form(secret.prefix),
        "created_at": _moment(secret.created_at),
        "expires_at": _moment(secret.expires_at),
    }


def _moment(when: datetime | None) -> str | None:
    return None if when is None else when.astimezone(UTC).isoformat().replace("+00:00", "Z")
