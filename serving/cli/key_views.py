"""Keys and their history as tables for a person; `serving.domain.key_forms` has them as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime

from rich.console import Console
from rich.table import Table

from serving.cli.console import out, shown
from serving.domain.key_change import AuditRow
from serving.domain.key_forms import prefix_form
from serving.domain.key_record import KeyRecord

_WIDEST = 100_000


def keys_table(records: Sequence[KeyRecord], now: datetime) -> Table:
    """secrets: how many there are that have not ended."""
    table = Table("id", "prefix", "user", "tier", "models", "secrets", "expires", "last used", "state")
    for record in records:
        working = sum(not secret.has_expired(now) for secret in record.secrets)
        cells = (
            record.id,
            prefix_form(record.prefix),
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
