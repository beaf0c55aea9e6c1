"""How usage, invoices and reports are shown: as tables to a person, as JSON to a program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from serving.adapters.redis.poison import Replayed
from serving.cli.console import shown
from serving.domain.money import as_text
from serving.domain.usage import Invoice, UsageTotals
from serving.metering.reconcile import Report


def usage_table(rows: Sequence[UsageTotals], group_by: str) -> Table:
    table = Table(group_by)
    for name in ("requests", "pictures", "megapixels", "received MiB", "inference s", "amount"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            shown(row.group),
            str(row.requests),
            str(row.pictures),
            f"{row.pixels / 1e6:.1f}",
            f"{row.received_bytes / (1 << 20):.1f}",
            f"{row.inference_microseconds / 1e6:.1f}",
            as_text(row.amount_micros),
        )
    return table


def invoice_table(made: Invoice) -> Table:
    table = Table("user", "key", "tier", "deployment", "what", title=str(made.month), show_footer=True)
    table.columns[0].footer = "total"
    for name, footer in (("quantity", ""), ("unit price", ""), ("amount", as_text(made.total_micros))):
        table.add_column(name, footer=footer, justify="right")
    for line in made.lines:
        names = (line.user, line.key_id, line.tier, line.deployment or "", line.what)
        amounts = (str(line.quantity), as_text(line.unit_micros), as_text(line.amount_micros))
        table.add_row(*map(shown, names), *amounts)
    return table


def report_json(report: Report) -> dict[str, Any]:
    return {
        "agrees": report.agrees,
        "line": report.line(),
        "keys": report.keys,
        "ledger": asdict(report.counts),
        "in_stream": report.backlog.entries,
        "lag_seconds": report.backlog.lag_seconds,
        "set_aside": report.backlog.poison,
        "of_a_later_form": report.later,
        "in_journals": report.journals.waiting,
        "damaged_journals": report.journals.damaged,
        "unprimed_partitions": report.unprimed,
        "repaired": report.repaired,
        "differences": [
            {
                "key_id": key_id,
                "month": str(of_month),
                "count": drift.count,
                "ledger": drift.ledger,
                "in_stream": drift.on_the_way,
                "leased": drift.leased,
                "too_many": drift.certain,
            }
            for (key_id, of_month), drift in sorted(report.drifts.items())
        ],
    }


def replayed_json(replayed: Replayed) -> dict[str, Any]:
    return {"moved": replayed.moved, "left": replayed.left, "reasons": replayed.reasons}
