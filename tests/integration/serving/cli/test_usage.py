"""`visiongate usage` as an operator runs it: what it prints, and how it ends."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from typer.testing import CliRunner, Result

from serving.adapters.journal_record import JournalRecord, to_line
from serving.adapters.redis import keyspace
from serving.adapters.sql.database import Database
from serving.adapters.sql.ledger import LedgerEntry, SqlLedger
from serving.adapters.tiers import load_tiers
from serving.cli.usage import app
from serving.domain.month import Month
from serving.domain.usage import UsageEvent
from serving.errors import OperatorError
from tests.integration.serving.cli.conftest import Site
from tests.support.consumers import drain, new_consumer
from tests.support.metering import append, charge, charged, connect, set_aside
from tests.support.ports import free_ports
from tests.support.postgresql import running_postgresql
from tests.support.usage_events import make_event

THIS_MONTH = Month.of(datetime.now(UTC))
EVENTS = [
    make_event("req_1", key_id="key_a", user="ada", pictures=1000, admitted_at=THIS_MONTH.begin),
    make_event("req_2", key_id="key_a", user="ada", pictures=500, admitted_at=THIS_MONTH.begin),
    make_event(
        "req_3",
        key_id="key_b",
        user="[red]bob",
        deployment="=cmd()",
        pictures=1,
        admitted_at=THIS_MONTH.begin + timedelta(days=1, hours=3),
    ),
]


def run(*arguments: str, expect: int = 0) -> Result:
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == expect, result.output
    return result


def run_json(*arguments: str, expect: int = 0) -> Any:
    return json.loads(run(*arguments, "--json", expect=expect).stdout)


def bill(site: Site, events: Sequence[UsageEvent] = EVENTS) -> None:
    """As gateways and the consumer do."""

    async def fill() -> None:
        connection, database = connect(site.redis_url), Database(site.database_url)
        for event in events:
            await charge(connection, event.key_id, event.month, event.pictures)
        entries = [LedgerEntry(event, stream_entry="1-1") for event in events]
        await SqlLedger(database, load_tiers(None)).record(entries)
        await connection.close()
        await database.close()

    asyncio.run(fill())


def test_without_usage_there_is_a_row_of_zeros(site: Site) -> None:
    (row,) = run_json("show")["rows"]

    assert (row["group"], row["requests"], row["pictures"], row["amount"]) == ("", 0, 0, "0.000000")


@pytest.mark.parametrize(
    ("arguments", "rows"),
    [
        ((), [("", 3, 1501)]),
        (("--group-by", "key"), [("key_a", 2, 1500), ("key_b", 1, 1)]),
        (("--group-by", "user", "--user", "ada"), [("ada", 2, 1500)]),
        (("--group-by", "deployment", "--key", "key_b"), [("=cmd()", 1, 1)]),
        (("--from", f"{THIS_MONTH}-02"), [("", 1, 1)]),
        (("--to", f"{THIS_MONTH}-02"), [("", 2, 1500)]),
        (("--from", f"{THIS_MONTH}-02T03:00:00Z", "--to", f"{THIS_MONTH}-02T04:00:00Z"), [("", 1, 1)]),
        (
            ("--group-by", "day"),
            [(f"{THIS_MONTH}-01", 2, 1500), (f"{THIS_MONTH}-02", 1, 1)],
        ),
    ],
)
def test_usage_is_shown_as_it_is_asked_for(
    site: Site, arguments: tuple[str, ...], rows: list[tuple[str, int, int]]
) -> None:
    bill(site)

    shown = run_json("show", *arguments)["rows"]

    assert [(row["group"], row["requests"], row["pictures"]) for row in shown] == rows


def test_for_a_person_it_is_a_table_that_shows_names_as_they_are(site: Site) -> None:
    bill(site)

    text = run("show", "--group-by", "user").stdout

    assert "[red]bob" in text
    assert all(word in text for word in ("ada", "1500", "0.750000"))


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("show", "--group-by", "colour"), "colour"),
        (("show", "--from", "yesterday"), "2026-11-21"),
        (("show", "--from", "2026-11-21T13:30:00Z"), "whole hours"),
        (("invoice", "--month", "2026-13"), "2026-13"),
        (("invoice", "--month", "2026-11", "--json", "--csv"), "choose one"),
        (("invoice",), "--month"),
    ],
)
def test_what_cannot_be_asked_is_said(site: Site, arguments: tuple[str, ...], why: str) -> None:
    assert why in " ".join(run(*arguments, expect=2).output.replace("│", " ").split())


def test_an_invoice_is_a_table_json_or_csv(site: Site) -> None:
    bill(site)
    month = ("--month", str(THIS_MONTH))

    text, made = run("invoice", *month).stdout, run_json("invoice", *month)
    rows = list(csv.DictReader(io.StringIO(run("invoice", *month, "--csv").stdout)))

    assert made["total"] == "0.750500"
    assert all(word in text for word in (str(THIS_MONTH), "[red]bob", "0.750000", "0.750500"))
    assert [(row["user"], row["deployment"], row["amount"]) for row in rows] == [
        ("[red]bob", "'=cmd()", "0.000500"),
        ("ada", "shapes", "0.750000"),
    ]


def test_an_invoice_of_one_user(site: Site) -> None:
    bill(site)

    made = run_json("invoice", "--month", str(THIS_MONTH), "--user", "ada")

    assert {line["user"] for line in made["lines"]} == {"ada"}
    assert made["total"] == "0.750000"


def test_books_that_agree_end_with_0_and_one_line(site: Site) -> None:
    bill(site)
    run("reconcile", "--repair")

    assert run("reconcile").stdout == "They agree: 3 events, 0 on their way, 2 keys.\n"
    assert run_json("reconcile") == {
        "agrees": True,
        "line": "They agree: 3 events, 0 on their way, 2 keys.",
        "keys": 2,
        "ledger": run_json("reconcile")["ledger"],
        "in_stream": 0,
        "lag_seconds": 0.0,
        "set_aside": 0,
        "of_a_later_form": 0,
        "in_journals": 0,
        "damaged_journals": 0,
        "unprimed_partitions": 0,
        "repaired": 0,
        "differences": [],
    }


def test_books_that_do_not_agree_end_with_1_until_they_are_repaired(site: Site) -> None:
    bill(site)
    run("reconcile", "--repair")
    tampered = [("key_a", 5), ("key_b", -1)]

    async def tamper() -> None:
        connection = connect(site.redis_url)
        for key_id, by in tampered:
            await charge(connection, key_id, THIS_MONTH, by)
        await append(
            connection, make_event("req_4", key_id="key_a", pictures=2, admitted_at=THIS_MONTH.begin)
        )
        await connection.close()

    asyncio.run(tamper())

    found = run_json("reconcile", expect=1)
    line = run("reconcile", expect=1).stdout
    repaired = run("reconcile", "--repair").stdout

    assert line.count("\n") == 1
    assert line.startswith(f"They do not agree: key_a counts 1507 in {THIS_MONTH}, and should 1502; ")
    assert found["differences"][0] == {
        "key_id": "key_a",
        "month": str(THIS_MONTH),
        "count": 1507,
        "ledger": 1500,
        "in_stream": 2,
        "leased": 0,
        "too_many": 5,
    }
    assert repaired == "They agree: 3 events, 1 on their way, 2 keys; 2 counts were repaired.\n"


def test_after_a_flush_a_repair_fills_redis_again(site: Site) -> None:
    bill(site)
    with site.redis.client() as client:
        client.flushall()

    assert run_json("reconcile", expect=1)["unprimed_partitions"] == 16
    assert run("reconcile", "--repair").stdout == "They agree: 3 events, 0 on their way, 2 keys.\n"
    assert run_json("reconcile")["unprimed_partitions"] == 0


def test_journals_that_wait_are_counted(site: Site) -> None:
    folder: Path = site.run_directory / "journal"
    folder.mkdir(parents=True)
    lines = [to_line(JournalRecord(event)) for event in EVENTS]
    (folder / "1-a.journal").write_bytes(lines[0] + lines[1] + lines[2][:40])  # cut short by a crash
    (folder / "2-b.journal").write_bytes(lines[2])
    (folder / "3-c.damaged").write_bytes(lines[2])

    found = run_json("reconcile", expect=1)

    assert (found["in_journals"], found["damaged_journals"], found["agrees"]) == (3, 1, False)


@pytest.mark.parametrize("repaired_before", [False, True])
def test_poison_that_can_be_read_by_now_is_billed_and_charged_once(site: Site, repaired_before: bool) -> None:
    """Although one event is among it twice, and a repair may have taken its charges for too many."""
    run("reconcile", "--repair")
    event, other = (replace(EVENTS[0], request_id=f"req_{each}", pictures=3) for each in "xy")
    partition = keyspace.partition_of(event.key_id)

    async def poison() -> None:
        connection = connect(site.redis_url)
        redis: Any = connection.redis
        ids = await append(connection, event, other, event)
        ids.append((await redis.xadd(keyspace.usage_stream(partition), {"e": "?"})).decode())
        await set_aside(connection, partition, *ids)
        await connection.close()

    async def move_and_count() -> int:
        connection, database = connect(site.redis_url), Database(site.database_url)
        await drain(new_consumer(connection, SqlLedger(database, load_tiers(None))))
        await connection.redis.delete(keyspace.poison_stream(partition))
        count = await charged(connection, event.key_id, event.month)
        await connection.close()
        await database.close()
        return count

    asyncio.run(poison())
    if repaired_before:
        run("reconcile", "--repair", expect=1)
    first, second = run("replay-poison", expect=1), run_json("replay-poison", expect=1)
    count = asyncio.run(move_and_count())

    assert first.stdout.startswith("3 entries are in the stream again; 1 cannot be read.\n  vg:{")
    assert first.stdout.endswith(": this is no usage event\n")
    assert (second["moved"], second["left"], len(second["reasons"])) == (0, 1, 1)
    assert run("replay-poison").stdout == "0 entries are in the stream again; 0 cannot be read.\n"
    assert count == 6
    assert run("reconcile").stdout == "They agree: 2 events, 0 on their way, 1 keys.\n"


def test_a_large_ledger_is_waited_for(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than a gateway would: its patience is a fifth of a second here, and the statement takes more."""
    defaults: Any = Database.__init__.__kwdefaults__
    monkeypatch.setitem(defaults, "command_timeout_seconds", 0.2)
    month = ("--month", str(THIS_MONTH))
    with running_postgresql() as server:
        url = server.new_database("large")
        monkeypatch.setenv("VISIONGATE_DATABASE_URL", url)
        make_tables(url)
        for command in (("invoice", *month), ("reconcile", "--repair")):
            with locked_for(url, 0.6):
                run(*command)


def make_tables(url: str) -> None:
    async def run() -> None:
        database = Database(url, command_timeout_seconds=10.0)
        await database.prepare()
        await database.close()

    asyncio.run(run())


@contextmanager
def locked_for(url: str, seconds: float) -> Iterator[None]:
    """Nobody reads usage meanwhile."""
    is_locked = threading.Event()

    async def hold() -> None:
        database = Database(url, command_timeout_seconds=10.0)
        async with database.writing() as session:
            await session.execute(text("LOCK TABLE usage_events, usage_daily IN ACCESS EXCLUSIVE MODE"))
            is_locked.set()
            await session.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": seconds})
        await database.close()

    with ThreadPoolExecutor() as pool:
        holding = pool.submit(asyncio.run, hold())
        assert is_locked.wait(10.0)
        yield
        holding.result()


def test_what_cannot_be_reached_is_an_error_and_no_verdict(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`visiongate` ends with status 2 then."""
    monkeypatch.setenv("VISIONGATE_REDIS_URL", f"redis://127.0.0.1:{free_ports(1)[0]}")
    with pytest.raises(OperatorError, match="cannot be reached"):
        run("reconcile")

    monkeypatch.setenv("VISIONGATE_DATABASE_URL", "postgresql://127.0.0.1:1/nothing")
    with pytest.raises(OperatorError, match="database"):
        run("show")
