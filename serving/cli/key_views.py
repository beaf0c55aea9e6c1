"""How keys and their history are shown: as JSON, and as tables for a person. Never with a secret."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from serving.cli.console import out, shown
from serving.domain.key_change import AuditRow
from serving.domain.key_record import KeyRecord

_WIDEST = 100_000


def key_json(record: KeyRecord, now: datetime) -> dict[str, Any]:
    return {
        "id": record.id,
        "prefix": _prefix(record.prefix),
        "user": record.user,
        "tier": record.tier,
        "models": None if record.models is None else sorted(record.models),
        "state": record.state(now),
        "created_at": moment(record.created_at),
        "expires_at": moment(record.expires_at),
        "revoked_at": moment(record.revoked_at),
        "last_used_at": moment(record.last_used_at),
        "secrets": [
            {
                "prefix": _prefix(secret.prefix),
                "created_at": moment(secret.created_at),
                "expires_at": moment(secret.expires_at),
            }
            for secret in record.secrets
        ],
    }


def keys_table(records: Sequence[KeyRecord], now: datetime) -> Table:
    """secrets: how many there are that have not ended."""
    table = Table("id", "prefix", "user", "tier", "models", "secrets", "expires", "last used", "state")
    for record in records:
        working = sum(not secret.has_expired(now) for secret in record.secrets)
        cells = (
            record.id,
            _prefix(record.prefix),
            record.user,
            record.tier,
            "all" if record.models is None else ", ".join(sorted(record.models)),
            str(working),
            moment(record.expires_at) or "never",
            moment(record.last_used_at) or "never",
            record.state(now),
        )
        table.add_row(*(shown(cell) for cell in cells))
    return table


def change_json(row: AuditRow) -> dict[str, Any]:
    change = row.change
    return {
        "id": row.id,
        "at": moment(change.at),
        "actor": change.actor,
        "action": change.action,
        "key_id": change.key_id,
        "user": change.user,
        "details": dict(change.details),
    }


def changes_table(rows: Sequence[AuditRow]) -> Table:
    table = Table("id", "at", "actor", "action", "key", "user", "details")
    for row in rows:
        change = row.change
        cells = (
            str(row.id),
            str(moment(change.at)),
            change.actor,
            change.action,
            change.key_id or "all of the user",
            change.user,
            json.dumps(dict(change.details)),
        )
        table.add_row(*(shown(cell) for cell in cells))
    return table


def print_table(table: Table) -> None:
    """As wide as it is where a program reads it; on a terminal, as wide as that is."""
    (out if out.is_terminal else Console(width=_WIDEST)).print(table)


def moment(when: datetime | None) -> str | None:
    return None if when is None else when.isoformat(timespec="seconds")


def _prefix(prefix: str) -> str:
    return f"pk_{prefix}"
