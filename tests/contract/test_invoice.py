"""What is owed for a month, to the micro: pictures at the prices of their time, and subscriptions."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import delete

from serving.adapters.memory.clock import ManualClock
from serving.adapters.sql.database import Database
from serving.adapters.sql.ledger import SqlLedger
from serving.adapters.sql.ledger_tables import SubscriptionPriceRow
from serving.domain.month import Month
from serving.domain.usage import Invoice, InvoiceLine, UsageEvent
from tests.support.keys import ACTOR, TIERS, registry_of
from tests.support.sql_ledger import entry
from tests.support.usage_events import make_event

NOVEMBER = Month(2026, 11)
SUBSCRIPTION_MICROS = 500_000_000
"""Of the tier `enterprise` in the table that ships."""

CHEAP: dict[str, Any] = {"tier": "free", "price_micros_per_1000": 1}
PRO: dict[str, Any] = {"tier": "pro", "price_micros_per_1000": 500_000}


def pictures(quantity: int, unit_micros: int, amount_micros: int, **fields: str) -> InvoiceLine:
    line = InvoiceLine("ada", "key_1", "pro", "shapes", "pictures", quantity, unit_micros, amount_micros)
    return replace(line, **fields)  # type: ignore[arg-type]  # of names only, which are texts


def subscription(key_id: str, micros: int, *, user: str = "ada", tier: str = "enterprise") -> InvoiceLine:
    return InvoiceLine(user, key_id, tier, None, "subscription", 1, micros, micros)


def on(day: int, hour: int = 0) -> datetime:
    return datetime(2026, 11, day, hour, tzinfo=UTC)


@pytest.mark.parametrize(
    ("events", "lines"),
    [
        pytest.param([], [], id="nothing"),
        pytest.param([make_event()], [pictures(1, 500_000, 500)], id="one picture"),
        pytest.param(
            [make_event(f"req_{n}", price_micros_per_1000=500) for n in range(1000)],
            [pictures(1000, 500, 500)],
            id="half a micro a picture is rounded once, not a thousand times",
        ),
        pytest.param(
            [make_event(**CHEAP, pictures=500)],
            [pictures(500, 1, 0, tier="free")],
            id="0.5 goes to the even 0",
        ),
        pytest.param(
            [make_event(**CHEAP, pictures=501)], [pictures(501, 1, 1, tier="free")], id="0.501 goes up"
        ),
        pytest.param(
            [make_event(**CHEAP, pictures=1500)],
            [pictures(1500, 1, 2, tier="free")],
            id="1.5 goes to the even 2",
        ),
        pytest.param(
            [make_event("a"), make_event("b", price_micros_per_1000=600_000, pictures=2)],
            [pictures(1, 500_000, 500), pictures(2, 600_000, 1200)],
            id="a price that changed within the month makes two lines",
        ),
        pytest.param(
            [make_event("a", **PRO), make_event("b", **CHEAP, pictures=2000)],
            [pictures(2000, 1, 2, tier="free"), pictures(1, 500_000, 500)],
            id="a tier that was swapped within the month makes two lines",
        ),
        pytest.param(
            [
                make_event("a", user="bob", key_id="key_0"),
                make_event("b", deployment="shapes"),
                make_event("c", deployment="Other"),
                make_event("d", key_id="key_0"),
            ],
            [
                pictures(1, 500_000, 500, key_id="key_0"),
                pictures(1, 500_000, 500, deployment="Other"),
                pictures(1, 500_000, 500),
                pictures(1, 500_000, 500, user="bob", key_id="key_0"),
            ],
            id="lines come by user, key, tier, deployment and price",
        ),
        pytest.param(
            [
                make_event("before", admitted_at=on(1) - timedelta(microseconds=1)),
                make_event("first", admitted_at=on(1), pictures=2),
                make_event("last", admitted_at=NOVEMBER.end - timedelta(microseconds=1), pictures=3),
                make_event("after", admitted_at=NOVEMBER.end),
            ],
            [pictures(5, 500_000, 2500)],
            id="other months are not in it",
        ),
    ],
)
async def test_pictures_are_owed_at_the_price_of_their_time(
    ledger: SqlLedger, events: list[UsageEvent], lines: list[InvoiceLine]
) -> None:
    await ledger.record([entry(event) for event in events])

    invoice = await ledger.invoice(NOVEMBER)

    assert invoice == Invoice(NOVEMBER, tuple(lines))
    assert invoice.total_micros == sum(line.amount_micros for line in lines)


def paying(request_id: str, when: datetime, micros: int, *, tier: str = "enterprise") -> UsageEvent:
    return make_event(
        request_id, admitted_at=when, tier=tier, price_micros_per_month=micros, price_micros_per_1000=0
    )


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "one by one"])
@pytest.mark.parametrize(
    ("events", "expected"),
    [
        pytest.param(
            [paying("a", on(3), 7)], [subscription("key_1", 7)], id="the price recorded, not the table's"
        ),
        pytest.param(
            [paying("a", on(3), 7), paying("b", on(20), 9)],
            [subscription("key_1", 9)],
            id="the last one's price",
        ),
        pytest.param(
            [paying("a", on(20), 9), paying("b", on(3), 7)],
            [subscription("key_1", 9)],
            id="in whatever order",
        ),
        pytest.param(
            [paying("a", on(20, 9), 9), paying("b", on(20, 8), 7)],
            [subscription("key_1", 9)],
            id="also within a day",
        ),
        pytest.param(
            [
                paying("last", on(20, 21), 7),
                paying("other", on(20, 20), 9),
                *(paying(f"at {hour}", on(20, hour), 7) for hour in range(20)),
            ],
            [subscription("key_1", 7)],
            id="the last one's, though earlier ones at its price came after another",
        ),
        pytest.param(
            [paying("a", on(3), 7), paying("b", on(20), 0, tier="free")], [], id="left for a tier without one"
        ),
        pytest.param(
            [paying("a", on(3), 7), paying("b", NOVEMBER.end, 9)],
            [subscription("key_1", 7)],
            id="the next month's price does not count",
        ),
    ],
)
async def test_a_used_key_owes_the_subscription_of_its_last_event(
    ledger: SqlLedger, events: list[UsageEvent], expected: list[InvoiceLine], at_once: bool
) -> None:
    for batch in [events] if at_once else [[event] for event in events]:
        await ledger.record([entry(event) for event in batch])

    lines = (await ledger.invoice(NOVEMBER)).lines

    assert [line for line in lines if line.what == "subscription"] == expected


@pytest.mark.parametrize(
    ("created_at", "ends", "is_owed"),
    [
        pytest.param(on(1) - timedelta(days=40), {}, True, id="there all along"),
        pytest.param(on(30, 23), {}, True, id="made on the last day"),
        pytest.param(NOVEMBER.end, {}, False, id="made afterwards"),
        pytest.param(on(1) - timedelta(days=40), {"revoked_at": on(1)}, False, id="revoked before it began"),
        pytest.param(
            on(1) - timedelta(days=40), {"revoked_at": on(1, 1)}, True, id="revoked in its first hour"
        ),
        pytest.param(on(1) - timedelta(days=40), {"expires_at": on(1)}, False, id="expired before it began"),
        pytest.param(
            on(1) - timedelta(days=40), {"expires_at": on(1, 1)}, True, id="expired in its first hour"
        ),
    ],
)
async def test_an_unused_key_owes_its_tiers_subscription_while_it_could_be_used(
    ledger: SqlLedger,
    database: Database,
    created_at: datetime,
    ends: dict[str, datetime],
    is_owed: bool,
) -> None:
    clock = ManualClock(created_at)
    registry = registry_of(database, clock)
    issued = await registry.create(
        actor=ACTOR, user="ada", tier="enterprise", expires_at=ends.get("expires_at")
    )
    await registry.create(actor=ACTOR, user="ada", tier="pro")  # which has none
    if "revoked_at" in ends:
        clock.set_wall_clock(ends["revoked_at"])
        await registry.revoke(issued.record.id, actor=ACTOR)

    lines = (await ledger.invoice(NOVEMBER)).lines

    assert lines == ((subscription(issued.record.id, SUBSCRIPTION_MICROS),) if is_owed else ())


async def test_a_rotated_key_is_one_key(ledger: SqlLedger, database: Database) -> None:
    clock = ManualClock(on(2))
    registry = registry_of(database, clock)
    key_id = (await registry.create(actor=ACTOR, user="ada", tier="enterprise")).record.id
    before = replace(paying("before", on(3), SUBSCRIPTION_MICROS), key_id=key_id)
    await registry.rotate(key_id, actor=ACTOR, overlap=timedelta(hours=1))
    after = replace(paying("after", on(4), SUBSCRIPTION_MICROS), key_id=key_id)

    await ledger.record([entry(before), entry(after)])

    assert (await ledger.invoice(NOVEMBER)).lines == (
        pictures(2, 0, 0, key_id=key_id, tier="enterprise"),
        subscription(key_id, SUBSCRIPTION_MICROS),
    )


async def test_one_users_invoice_has_that_users_lines(ledger: SqlLedger, database: Database) -> None:
    registry = registry_of(database, ManualClock(on(2)))
    keys = {
        user: (await registry.create(actor=ACTOR, user=user, tier="enterprise")).record.id
        for user in ("ada", "bob")
    }
    await ledger.record([entry(make_event("a")), entry(make_event("b", user="bob", key_id="key_2"))])

    invoice = await ledger.invoice(NOVEMBER, user="bob")

    assert set(invoice.lines) == {
        pictures(1, 500_000, 500, user="bob", key_id="key_2"),
        subscription(keys["bob"], SUBSCRIPTION_MICROS, user="bob"),
    }
    assert (await ledger.invoice(NOVEMBER, user="nobody")).lines == ()


async def test_an_unused_key_owes_the_last_price_of_the_month_whatever_the_table_says_later(
    database: Database,
) -> None:
    tiers = dict(TIERS)
    ledger = SqlLedger(database, tiers)
    issued = await registry_of(database, ManualClock(on(2))).create(
        actor=ACTOR, user="ada", tier="enterprise"
    )

    for when, price in ((on(3), "0.000003"), (on(30, 23), "0.000002"), (NOVEMBER.end, "0.000001")):
        tiers["enterprise"] = replace(TIERS["enterprise"], price_per_month=Decimal(price))
        await ledger.note_prices(when)
    del tiers["enterprise"]
    await ledger.note_prices(NOVEMBER.end + timedelta(days=1))

    assert (await ledger.invoice(NOVEMBER)).lines == (subscription(issued.record.id, 2),)
    december = await ledger.invoice(Month(2026, 12))
    assert december.lines == (subscription(issued.record.id, 1),)  # the tier is gone, the key is not


async def test_a_gateway_with_an_older_table_does_not_take_a_price_back(database: Database) -> None:
    """Each minute it notes its own again, as long as that one is new to it, and no longer."""
    issued = await registry_of(database, ManualClock(on(1))).create(
        actor=ACTOR, user="ada", tier="enterprise"
    )
    edited = {"enterprise": replace(TIERS["enterprise"], price_per_month=Decimal(7))}
    older, newer = SqlLedger(database, TIERS), SqlLedger(database, edited)

    await older.note_prices(on(2))
    await newer.note_prices(on(3))
    await older.note_prices(on(4))

    assert (await newer.invoice(NOVEMBER)).lines == (subscription(issued.record.id, 7_000_000),)


async def test_a_tier_whose_price_nobody_knew_in_that_month_is_a_line_of_nothing(
    ledger: SqlLedger, database: Database
) -> None:
    issued = await registry_of(database, ManualClock(on(2))).create(
        actor=ACTOR, user="ada", tier="enterprise"
    )
    async with database.writing() as session:
        await session.execute(delete(SubscriptionPriceRow))
    await ledger.note_prices(NOVEMBER.end)

    assert (await ledger.invoice(NOVEMBER)).lines == (replace(subscription(issued.record.id, 0), quantity=0),)


@pytest.mark.parametrize(
    ("switches", "is_owed"),
    [
        pytest.param([(on(1) - timedelta(days=9), False)], False, id="all the month"),
        pytest.param([(on(1), False)], False, id="since it began"),
        pytest.param([(on(1, 1), False)], True, id="after its first hour"),
        pytest.param([(on(1) - timedelta(days=9), False), (on(30, 23), True)], True, id="until its last"),
        pytest.param(
            [(on(1) - timedelta(days=9), False), (NOVEMBER.end, True)], False, id="until it was over"
        ),
        pytest.param(
            [(on(1) - timedelta(days=9), False), (on(1) - timedelta(days=8), True)], True, id="before"
        ),
        pytest.param([(NOVEMBER.end, False)], True, id="afterwards"),
    ],
)
async def test_a_key_owes_nothing_for_a_month_in_which_its_user_was_disabled(
    ledger: SqlLedger, database: Database, switches: list[tuple[datetime, bool]], is_owed: bool
) -> None:
    clock = ManualClock(on(1) - timedelta(days=40))
    registry = registry_of(database, clock)
    keys = {
        user: (await registry.create(actor=ACTOR, user=user, tier="enterprise")).record.id
        for user in ("ada", "bob")
    }
    for when, enabled in switches:
        clock.set_wall_clock(when)
        await registry.set_user_enabled("ada", enabled=enabled, actor=ACTOR)

    lines = (await ledger.invoice(NOVEMBER)).lines

    of_ada = [subscription(keys["ada"], SUBSCRIPTION_MICROS)] if is_owed else []
    assert lines == (*of_ada, subscription(keys["bob"], SUBSCRIPTION_MICROS, user="bob"))
    assert (await ledger.invoice(NOVEMBER, user="ada")).lines == tuple(of_ada)


async def test_a_key_that_was_revoked_before_its_user_was_enabled_again_owes_nothing(
    ledger: SqlLedger, database: Database
) -> None:
    clock = ManualClock(on(1) - timedelta(days=40))
    registry = registry_of(database, clock)
    issued = await registry.create(actor=ACTOR, user="ada", tier="enterprise")
    clock.set_wall_clock(on(1) - timedelta(days=9))
    await registry.set_user_enabled("ada", enabled=False, actor=ACTOR)
    clock.set_wall_clock(on(10))
    await registry.revoke(issued.record.id, actor=ACTOR)
    clock.set_wall_clock(on(20))
    await registry.set_user_enabled("ada", enabled=True, actor=ACTOR)

    assert (await ledger.invoice(NOVEMBER)).lines == ()
