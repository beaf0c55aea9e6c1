"""`visiongate keys`: issue, list and revoke API keys."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from serving.adapters.sql.database import Database
from serving.adapters.sql.key_registry import KeyRegistry
from serving.adapters.tiers import load_tiers
from serving.cli.console import out
from serving.clock import SystemClock
from serving.domain.key_record import IssuedKey, KeyRecord
from serving.errors import BackendUnavailable, OperatorError
from serving.settings import load_settings

app = typer.Typer(help="Issue, list and revoke API keys.", no_args_is_help=True)

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_LONGEST_SECONDS = 36_525 * 86_400

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def duration(text: str) -> timedelta:
    """`90s`, `30m`, `12h`, `30d`, `2w`. Raises typer.BadParameter."""
    match = re.fullmatch(r"([1-9][0-9]{0,9})([smhdw])", text)
    if match is None:
        raise typer.BadParameter(f"{text!r} is no duration; write 90s, 30m, 12h, 30d or 2w.")
    seconds = int(match[1]) * _SECONDS[match[2]]
    if seconds > _LONGEST_SECONDS:
        raise typer.BadParameter(f"{text} is no useful duration: more than a hundred years.")
    return timedelta(seconds=seconds)


@app.command()
def create(
    tier: Annotated[str, typer.Option(help="Tier that sets the key's limits.")],
    user: Annotated[str, typer.Option(help="Who will own the key.")],
    model: Annotated[list[str] | None, typer.Option(help="Allow this model; repeat. Default: all.")] = None,
    expires_in: Annotated[
        timedelta | None, typer.Option(parser=duration, metavar="30d", help="Default: never.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Issue a key. Its text is shown now and never again."""
    asyncio.run(_create(tier=tier, user=user, models=model or None, expires_in=expires_in, as_json=as_json))


@app.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """List all keys, without their secrets."""
    asyncio.run(_list(as_json=as_json))


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="The key's id, as listed.")], as_json: AsJson = False
) -> None:
    """Stop a key, within a second and for ever."""
    asyncio.run(_revoke(key_id, as_json=as_json))


async def _create(
    *, tier: str, user: str, models: list[str] | None, expires_in: timedelta | None, as_json: bool
) -> None:
    expires_at = None if expires_in is None else SystemClock().now() + expires_in
    async with _registry() as registry:
        issued = await registry.create(user=user, tier=tier, models=models, expires_at=expires_at)
    if as_json:
        typer.echo(json.dumps(_issued(issued)))
        return
    out.print(_table([issued.record]))
    typer.echo(f"\n{issued.api_key.reveal()}\n")  # not through rich, which would wrap it
    out.print("Keep it now: it is stored nowhere and cannot be shown again.")


async def _list(*, as_json: bool) -> None:
    async with _registry() as registry:
        records = await registry.list()
    if as_json:
        typer.echo(json.dumps([_listed(record) for record in records]))
    else:
        out.print(_table(records))


async def _revoke(key_id: str, *, as_json: bool) -> None:
    async with _registry() as registry:
        record = await registry.revoke(key_id)
    if as_json:
        typer.echo(json.dumps(_listed(record)))
    else:
        typer.echo(f"{record.id} of {record.user} is revoked since {_moment(record.revoked_at)}.")


@asynccontextmanager
async def _registry() -> AsyncIterator[KeyRegistry]:
    settings = load_settings()
    tiers = load_tiers(settings.tiers_file)
    database = Database(settings.database_url)
    try:
        yield KeyRegistry(database, server_secret=settings.key_hash_secret, tiers=tiers, clock=SystemClock())
    except BackendUnavailable as exc:
        raise OperatorError(f"{exc.detail} {getattr(exc.__cause__, 'orig', exc.__cause__)}") from exc
    finally:
        await database.close()


def _issued(issued: IssuedKey) -> dict[str, Any]:
    listed = _listed(issued.record)
    shown = {name: listed[name] for name in ("id", "prefix", "user", "tier", "models", "expires_at")}
    return {**shown, "api_key": issued.api_key.reveal()}


def _listed(record: KeyRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "prefix": f"pk_{record.prefix}",
        "user": record.user,
        "tier": record.tier,
        "models": None if record.models is None else sorted(record.models),
        "state": record.state(SystemClock().now()),
        "created_at": _moment(record.created_at),
        "expires_at": _moment(record.expires_at),
        "revoked_at": _moment(record.revoked_at),
    }


def _table(records: Sequence[KeyRecord]) -> Table:
    table = Table("id", "prefix", "user", "tier", "models", "expires", "state")
    for record in records:
        row = _listed(record)
        models = "all" if record.models is None else ", ".join(row["models"])
        cells = (
            row["id"],
            row["prefix"],
            row["user"],
            row["tier"],
            models,
            row["expires_at"] or "never",
            row["state"],
        )
        table.add_row(*(escape(cell) for cell in cells))
    return table


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="seconds")
