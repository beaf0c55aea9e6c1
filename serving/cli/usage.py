"""`visiongate usage`: what was used, what it costs, and whether the books agree."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict
from typing import Annotated, Any, get_args

import typer
from prometheus_client import CollectorRegistry
from pydantic import ValidationError
from rich.table import Table

from serving.adapters.journal_count import count_waiting
from serving.adapters.redis.client import RedisConnection
from serving.adapters.redis.stream import RedisUsageStream
from serving.adapters.sql.database import Database
from serving.adapters.sql.ledger import SqlLedger
from serving.adapters.tiers import load_tiers
from serving.api.usage_queries import UsageParameters
from serving.cli.console import shown
from serving.cli.key_views import print_table
from serving.clock import SystemClock
from serving.domain.invoice_forms import invoice_csv, invoice_json, usage_json
from serving.domain.money import as_text
from serving.domain.month import Month
from serving.domain.usage import GroupBy, Invoice, UsageTotals
from serving.errors import BackendUnavailable, OperatorError
from serving.metering.reconcile import Reconciliation, Report
from serving.metering.recount import recount
from serving.metrics import Metrics
from serving.settings import Settings, load_settings

app = typer.Typer(help="What was used, what it costs, and whether the books agree.", no_args_is_help=True)

CALL_TIMEOUT_SECONDS = 5.0
"""Nobody waits at a gateway for what is asked here."""


def month(text: str) -> Month:
    """Raises typer.BadParameter."""
    try:
        return Month.parse(text)
    except ValueError as exc:
        raise typer.BadParameter(str(exc)) from exc


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
AsCsv = Annotated[bool, typer.Option("--csv", help="Print CSV.")]
OfUser = Annotated[str | None, typer.Option("--user", help="Of this user's keys only.")]
OfKey = Annotated[str | None, typer.Option("--key", help="Of the key with this id only.")]
OfMonth = Annotated[Month, typer.Option("--month", parser=month, metavar="2026-11", help="In UTC.")]
Begin = Annotated[
    str | None,
    typer.Option(
        "--from", metavar="2026-11-21", help="A day, or an hour in UTC; default: this month's begin."
    ),
]
End = Annotated[
    str | None,
    typer.Option(
        "--to", metavar="2026-11-22", help="The first moment not to count; default: the month's end."
    ),
]
Grouping = Annotated[str, typer.Option(help=f"One of {', '.join(get_args(GroupBy))}.")]
Repair = Annotated[bool, typer.Option("--repair", help="Set the counters by ledger, stream and leases.")]


@app.command()
def show(
    *,
    begin: Begin = None,
    end: End = None,
    group_by: Grouping = "total",
    user: OfUser = None,
    key: OfKey = None,
    as_json: AsJson = False,
) -> None:
    """What was billed, added up."""
    asked = {"from": begin, "to": end, "group_by": group_by, "user": user, "key_id": key}
    try:
        parameters = UsageParameters.model_validate({k: v for k, v in asked.items() if v is not None})
    except ValidationError as exc:
        first = exc.errors()[0]
        raise typer.BadParameter(f"{first['msg']}: {first['input']!r}") from exc
    query = parameters.query(SystemClock().now())

    async def run() -> Sequence[UsageTotals]:
        async with _ledger(load_settings()) as ledger:
            return await ledger.usage(query)

    rows = asyncio.run(run())
    if as_json:
        typer.echo(json.dumps(usage_json(rows, query)))
    else:
        print_table(_usage_table(rows, group_by))


@app.command()
def invoice(of_month: OfMonth, user: OfUser = None, as_json: AsJson = False, as_csv: AsCsv = False) -> None:
    """What each key owes for a month."""
    if as_json and as_csv:
        raise typer.BadParameter("choose one of --json and --csv")

    async def run() -> Invoice:
        async with _ledger(load_settings()) as ledger:
            return await ledger.invoice(of_month, user=user)

    made = asyncio.run(run())
    if as_json:
        typer.echo(json.dumps(invoice_json(made)))
    elif as_csv:
        typer.echo(invoice_csv(made), nl=False)
    else:
        print_table(_invoice_table(made))


@app.command()
def reconcile(repair: Repair = False, as_json: AsJson = False) -> None:
    """Say in one line whether stream, ledger and counters agree.

    Ends with status 0 where they agree, after the repair if there was one, 1 where they do not, and 2 where
    that cannot be told.
    """
    settings = load_settings()

    async def run() -> Report:
        async with _reconciliation(settings) as reconciliation:
            return await reconciliation.run(repair=repair)

    report = asyncio.run(run())
    typer.echo(json.dumps(_report_json(report)) if as_json else report.line())
    raise typer.Exit(0 if report.agrees else 1)


@asynccontextmanager
async def _ledger(settings: Settings) -> AsyncIterator[SqlLedger]:
    database = Database(settings.database_url)
    try:
        yield SqlLedger(database, load_tiers(settings.tiers_file))
    except BackendUnavailable as exc:
        why = getattr(exc.__cause__, "orig", exc.__cause__)
        raise OperatorError(f"{exc.detail} {why or ''}".strip()) from exc
    finally:
        await database.close()


@asynccontextmanager
async def _reconciliation(settings: Settings) -> AsyncIterator[Reconciliation]:
    async with AsyncExitStack() as last_first:
        ledger = await last_first.enter_async_context(_ledger(settings))
        connection = RedisConnection(
            settings.redis_address,
            timeout_seconds=CALL_TIMEOUT_SECONDS,
            metrics=Metrics(CollectorRegistry()),
        )
        last_first.push_async_callback(connection.close)
        yield Reconciliation(
            ledger,
            RedisUsageStream(connection, consumer="reconcile"),
            recount(connection, ledger),
            count_journals=lambda: count_waiting(settings.run_directory / "journal"),
        )


def _usage_table(rows: Sequence[UsageTotals], group_by: str) -> Table:
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


def _invoice_table(made: Invoice) -> Table:
    table = Table("user", "key", "tier", "deployment", "what", title=str(made.month), show_footer=True)
    table.columns[0].footer = "total"
    for name, footer in (("quantity", ""), ("unit price", ""), ("amount", as_text(made.total_micros))):
        table.add_column(name, footer=footer, justify="right")
    for line in made.lines:
        names = (line.user, line.key_id, line.tier, line.deployment or "", line.what)
        amounts = (str(line.quantity), as_text(line.unit_micros), as_text(line.amount_micros))
        table.add_row(*map(shown, names), *amounts)
    return table


def _report_json(report: Report) -> dict[str, Any]:
    return {
        "agrees": report.agrees,
        "line": report.line(),
        "keys": report.keys,
        "ledger": asdict(report.counts),
        "in_stream": report.backlog.entries,
        "lag_seconds": report.backlog.lag_seconds,
        "set_aside": report.backlog.poison,
        "in_journals": report.in_journals,
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
