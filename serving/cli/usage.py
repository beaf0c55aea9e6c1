"""`visiongate usage`: what was used, what it costs, and whether the books agree."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, get_args

import typer
from prometheus_client import CollectorRegistry
from pydantic import ValidationError

from serving.adapters.journal_count import count_journals
from serving.adapters.redis.client import RedisConnection
from serving.adapters.redis.poison import RedisPoison, Replayed
from serving.adapters.redis.stream import RedisUsageStream
from serving.adapters.sql.database import Database
from serving.adapters.sql.ledger import SqlLedger
from serving.adapters.tiers import load_tiers
from serving.api.usage_queries import UsageParameters
from serving.cli.key_views import print_table
from serving.cli.usage_views import invoice_table, replayed_json, report_json, usage_table
from serving.clock import SystemClock
from serving.domain.invoice_forms import invoice_csv, invoice_json, usage_json
from serving.domain.month import Month
from serving.domain.usage import GroupBy, Invoice, UsageTotals
from serving.errors import BackendUnavailable, OperatorError
from serving.metering.reconcile import Reconciliation, Report
from serving.metering.recount import recount
from serving.metrics import Metrics
from serving.settings import Settings, load_settings

app = typer.Typer(help="What was used, what it costs, and whether the books agree.", no_args_is_help=True)

CALL_TIMEOUT_SECONDS = 5.0
STATEMENT_TIMEOUT_SECONDS = 300.0
"""Nobody waits at a gateway for what is asked here, and some of it reads the whole ledger."""


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
        print_table(usage_table(rows, group_by))


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
        print_table(invoice_table(made))


@app.command()
def reconcile(repair: Repair = False, as_json: AsJson = False) -> None:
    """Say in one line whether stream, ledger and counters agree.

    Ends with status 0 where they agree, after the repair if there was one, 1 where they do not, and 2 where
    that cannot be told.
    """
    settings = load_settings()

    async def run() -> Report:
        async with _ledger(settings) as ledger, _redis(settings) as connection:
            reconciliation = Reconciliation(
                ledger,
                RedisUsageStream(connection, consumer="reconcile"),
                recount(connection, ledger),
                count_journals=lambda: count_journals(settings.run_directory / "journal"),
            )
            return await reconciliation.run(repair=repair)

    report = asyncio.run(run())
    typer.echo(json.dumps(report_json(report)) if as_json else report.line())
    raise typer.Exit(0 if report.agrees else 1)


@app.command()
def replay_poison(as_json: AsJson = False) -> None:
    """Move entries that were set aside, and can be read by now, back into the stream.

    Ends with status 0 where none is left, and 1 where some still cannot be read.
    """
    settings = load_settings()

    async def run() -> Replayed:
        async with _ledger(settings) as ledger, _redis(settings) as connection:
            replayed = await RedisPoison(connection).replay()
            # A repair may have taken their charges for too many while nobody could read whose they are.
            await recount(connection, ledger).correct(replayed.key_ids)
            return replayed

    replayed = asyncio.run(run())
    if as_json:
        typer.echo(json.dumps(replayed_json(replayed)))
    else:
        typer.echo(f"{replayed.moved} entries are in the stream again; {replayed.left} cannot be read.")
        for reason in replayed.reasons:
            typer.echo(f"  {reason}")
    raise typer.Exit(1 if replayed.left else 0)


@asynccontextmanager
async def _ledger(settings: Settings) -> AsyncIterator[SqlLedger]:
    database = Database(settings.database_url, command_timeout_seconds=STATEMENT_TIMEOUT_SECONDS)
    try:
        yield SqlLedger(database, load_tiers(settings.tiers_file))
    except BackendUnavailable as exc:
        why = getattr(exc.__cause__, "orig", exc.__cause__)
        raise OperatorError(f"{exc.detail} {why or ''}".strip()) from exc
    finally:
        await database.close()


@asynccontextmanager
async def _redis(settings: Settings) -> AsyncIterator[RedisConnection]:
    metrics = Metrics(CollectorRegistry())
    connection = RedisConnection(
        settings.redis_address, timeout_seconds=CALL_TIMEOUT_SECONDS, metrics=metrics
    )
    try:
        yield connection
    finally:
        await connection.close()
