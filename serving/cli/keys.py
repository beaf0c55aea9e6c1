"""`visiongate keys`: issue, list, rotate and revoke API keys, disable users, and see what was done."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Annotated

import typer
from prometheus_client import CollectorRegistry

from serving.adapters.key_changes import KeyChangePublisher
from serving.adapters.redis.client import RedisConnection
from serving.adapters.redis.key_changes import RedisKeyChanges
from serving.adapters.sql.database import Database
from serving.adapters.sql.key_registry import KeyRegistry
from serving.adapters.tiers import load_tiers
from serving.cli.console import errors, out
from serving.cli.key_views import changes_table, keys_table, moment, print_table
from serving.clock import SystemClock
from serving.domain.key_change import ChangedKeys
from serving.domain.key_forms import change_form, issued_key_form, key_form
from serving.domain.key_record import IssuedKey
from serving.errors import BackendUnavailable, OperatorError
from serving.metrics import Metrics
from serving.settings import load_settings

app = typer.Typer(help="Issue, list, rotate and revoke API keys.", no_args_is_help=True)

DEFAULT_OVERLAP = timedelta(hours=24)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_LONGEST_SECONDS = 36_525 * 86_400


def duration(text: str) -> timedelta:
    """`90s`, `30m`, `12h`, `30d`, `2w`. Raises typer.BadParameter."""
    match = re.fullmatch(r"([1-9][0-9]{0,9})([smhdw])", text)
    if match is None:
        raise typer.BadParameter(f"{text!r} is no duration; write 90s, 30m, 12h, 30d or 2w.")
    seconds = int(match[1]) * _SECONDS[match[2]]
    if seconds > _LONGEST_SECONDS:
        raise typer.BadParameter(f"{text} is no useful duration: more than a hundred years.")
    return timedelta(seconds=seconds)


def duration_or_none(text: str) -> timedelta:
    """`0s` as well. Raises typer.BadParameter."""
    return timedelta() if text == "0s" else duration(text)


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
KeyId = Annotated[str, typer.Argument(help="The key's id, as listed.")]
OfUser = Annotated[str | None, typer.Option("--user", help="Of this user only.")]
Lifetime = Annotated[timedelta | None, typer.Option(parser=duration, metavar="30d", help="Default: never.")]
Overlap = Annotated[
    timedelta | None,
    typer.Option(
        parser=duration_or_none,
        metavar="24h",
        help="How long earlier secrets work on; 0s: not at all. Default: 24h.",
    ),
]


@app.command()
def create(
    tier: Annotated[str, typer.Option(help="Tier that sets the key's limits.")],
    user: Annotated[str, typer.Option(help="Who will own the key.")],
    model: Annotated[list[str] | None, typer.Option(help="Allow this model; repeat. Default: all.")] = None,
    expires_in: Lifetime = None,
    as_json: AsJson = False,
) -> None:
    """Issue a key. Its text is shown now and never again."""

    async def run() -> None:
        expires_at = None if expires_in is None else SystemClock().now() + expires_in
        async with _registry() as registry:
            issued = await registry.create(
                actor=_actor(), user=user, tier=tier, models=model or None, expires_at=expires_at
            )
        _show_once(issued, as_json=as_json)

    asyncio.run(run())


@app.command("list")
def list_keys(user: OfUser = None, as_json: AsJson = False) -> None:
    """List keys, without their secrets."""

    async def run() -> None:
        async with _registry() as registry:
            records = await registry.list(user=user)
        now = SystemClock().now()
        if as_json:
            typer.echo(json.dumps([key_form(record, now) for record in records]))
        else:
            print_table(keys_table(records, now))

    asyncio.run(run())


@app.command()
def revoke(key_id: KeyId, as_json: AsJson = False) -> None:
    """Stop a key with all its secrets, within a second and for ever."""

    async def run() -> None:
        async with _registry() as registry:
            record = await registry.revoke(key_id, actor=_actor())
        if as_json:
            typer.echo(json.dumps(key_form(record, SystemClock().now())))
        else:
            typer.echo(f"{record.id} of {record.user} is revoked since {moment(record.revoked_at)}.")

    asyncio.run(run())


@app.command()
def rotate(key_id: KeyId, overlap: Overlap = None, as_json: AsJson = False) -> None:
    """Give a key a new secret, shown now and never again. Its id, limits and usage stay."""

    async def run() -> None:
        async with _registry() as registry:
            issued = await registry.rotate(
                key_id, actor=_actor(), overlap=DEFAULT_OVERLAP if overlap is None else overlap
            )
        _show_once(issued, as_json=as_json)

    asyncio.run(run())


@app.command()
def disable_user(user: str, as_json: AsJson = False) -> None:
    """Stop all keys of a user, within a second, until the user is enabled again."""
    asyncio.run(_set_user_enabled(user, enabled=False, as_json=as_json))


@app.command()
def enable_user(user: str, as_json: AsJson = False) -> None:
    """Let the keys of a disabled user work again, but those that are revoked or have expired."""
    asyncio.run(_set_user_enabled(user, enabled=True, as_json=as_json))


@app.command()
def history(
    key: Annotated[str | None, typer.Option(help="Of this key, and of its user as a whole.")] = None,
    user: OfUser = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="The latest so many.")] = 1000,
    as_json: AsJson = False,
) -> None:
    """Show who did what to keys and users, oldest first."""

    async def run() -> None:
        async with _registry() as registry:
            rows = await registry.history(key_id=key, user=user, limit=limit)
        if as_json:
            typer.echo(json.dumps([change_form(row) for row in rows]))
        else:
            print_table(changes_table(rows))

    asyncio.run(run())


async def _set_user_enabled(user: str, *, enabled: bool, as_json: bool) -> None:
    async with _registry() as registry:
        keys = await registry.set_user_enabled(user, enabled=enabled, actor=_actor())
    if as_json:
        typer.echo(json.dumps({"user": user, "enabled": enabled, "keys": keys}))
    else:
        typer.echo(f"{user} is {'enabled' if enabled else 'disabled'}; that concerns {keys} keys.")


def _show_once(issued: IssuedKey, *, as_json: bool) -> None:
    now = SystemClock().now()
    if as_json:
        typer.echo(json.dumps(issued_key_form(issued, now)))
        return
    print_table(keys_table([issued.record], now))
    typer.echo(f"\n{issued.api_key.reveal()}\n")  # not through rich, which would wrap it
    out.print("Keep it now: it is stored nowhere and cannot be shown again.")


class _Announcing:
    """`KeyChangePublisher` that says so where it could not publish."""

    def __init__(self, publisher: KeyChangePublisher) -> None:
        self._publisher = publisher

    async def publish(self, keys: ChangedKeys) -> bool:
        was_told = await self._publisher.publish(keys)
        if not was_told:
            errors.print(
                "[bold yellow]warning:[/] Redis could not be told; waiting until gateways have found the "
                "change in the database.",
                highlight=False,
            )
        return was_told


@asynccontextmanager
async def _registry() -> AsyncIterator[KeyRegistry]:
    settings = load_settings()
    tiers = load_tiers(settings.tiers_file)
    async with AsyncExitStack() as stack:
        database = Database(settings.database_url)
        stack.push_async_callback(database.close)
        connection = RedisConnection(
            settings.redis_address,
            timeout_seconds=settings.redis_timeout_seconds,
            metrics=Metrics(CollectorRegistry()),
        )
        stack.push_async_callback(connection.close)
        try:
            yield KeyRegistry(
                database,
                server_secret=settings.key_hash_secret,
                tiers=tiers,
                clock=SystemClock(),
                publisher=_Announcing(RedisKeyChanges(connection)),
            )
        except BackendUnavailable as exc:
            why = getattr(exc.__cause__, "orig", exc.__cause__)
            raise OperatorError(exc.detail if why is None else f"{exc.detail} {why}") from exc


def _actor() -> str:
    """Whom the system knows this process as; what the environment says of it, anybody may set."""
    try:
        login = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's made-up user
        login = str(os.getuid())
    return f"cli:{login}"
