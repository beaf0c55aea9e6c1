"""Invoices and usage as those get them who asked: CSV for a spreadsheet, JSON for a program.

Money is text in units with six decimals (`"12.340000"`), and the same in whole micros.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from serving.domain.money import as_text
from serving.domain.usage import Invoice, InvoiceLine, UsageQuery, UsageTotals

CSV_COLUMNS = ("month", "user", "key_id", "tier", "deployment", "what", "quantity", "unit_price", "amount")

_FORMULA_SIGN = "[-=+@\uff1d\uff0b\uff0d\uff20]"  # some take the full width forms for the signs themselves
_WHERE_A_CELL_MAY_BEGIN = r"(?:\A|(?<=[;|\t\r\n]))"  # where another separator than ours is looked for
_BEFORE_A_FORMULA = re.compile(rf'\A(?=[\t\r\n])|{_WHERE_A_CELL_MAY_BEGIN}(?=[\s"]*{_FORMULA_SIGN})')


def invoice_csv(invoice: Invoice) -> str:
    """As RFC 4180 has it, with a header and every cell in quotes.

    unit_price: of 1000 pictures, or of a subscription. Names that a spreadsheet would run are disarmed:
    an apostrophe stands before them, and before each sign that begins a cell where another separator is
    looked for.
    """
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerow(CSV_COLUMNS)
    for line in invoice.lines:
        names = (line.user, line.key_id, line.tier, line.deployment or "", line.what)
        amounts = (line.quantity, as_text(line.unit_micros), as_text(line.amount_micros))
        writer.writerow((invoice.month, *map(_harmless, names), *amounts))
    return text.getvalue()


def invoice_json(invoice: Invoice) -> dict[str, Any]:
    return {
        "month": str(invoice.month),
        "total": as_text(invoice.total_micros),
        "total_micros": invoice.total_micros,
        "lines": [_line_json(line) for line in invoice.lines],
    }


def usage_json(rows: Sequence[UsageTotals], query: UsageQuery) -> dict[str, Any]:
    return {
        "from": _moment(query.begin),
        "to": _moment(query.end),
        "group_by": query.group_by,
        "rows": [_totals_json(row) for row in rows],
    }


def _line_json(line: InvoiceLine) -> dict[str, Any]:
    return {
        "user": line.user,
        "key_id": line.key_id,
        "tier": line.tier,
        "deployment": line.deployment,
        "what": line.what,
        "quantity": line.quantity,
        "unit_price": as_text(line.unit_micros),
        "unit_price_micros": line.unit_micros,
        "amount": as_text(line.amount_micros),
        "amount_micros": line.amount_micros,
    }


def _totals_json(row: UsageTotals) -> dict[str, Any]:
    return {
        "group": row.group,
        "requests": row.requests,
        "pictures": row.pictures,
        "pixels": row.pixels,
        "received_bytes": row.received_bytes,
        "inference_microseconds": row.inference_microseconds,
        "amount": as_text(row.amount_micros),
        "amount_micros": row.amount_micros,
    }


def _harmless(name: str) -> str:
    return _BEFORE_A_FORMULA.sub("'", name)


def _moment(when: datetime) -> str:
    return f"{when.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
