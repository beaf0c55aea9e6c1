"""`/api/v1/usage` and `/api/v1/usage/invoice`: everybody's for the operator, their own for users."""

from __future__ import annotations

import csv
from datetime import UTC, datetime

import httpx
import pytest

from serving.domain.month import Month
from serving.domain.tenant import Tier
from serving.domain.usage import Invoice
from serving.errors import OperatorError
from tests.support.problems import assert_problem
from tests.support.usage_events import make_event
from tests.support.world import World, as_operator, as_user, running_world
from tests.unit.serving.api.conftest import Bills

NOVEMBER = {"from": "2026-11-01", "to": "2026-12-01"}
INVOICE = "/api/v1/usage/invoice"


@pytest.fixture
async def world(billing_world: World, bills: Bills) -> World:
    day = datetime(2026, 11, 21, 12, tzinfo=UTC)
    await bills.record(
        make_event("1", user="ada", key_id="key_a", pictures=1000, admitted_at=day),
        make_event("2", user="ada", key_id="key_b", pictures=2, admitted_at=day.replace(day=22)),
        make_event("3", user="bob", key_id="key_c", pictures=40, admitted_at=day),
        make_event("4", user="bob", key_id="key_c", pictures=1, admitted_at=day.replace(month=10)),
    )
    return billing_world


def pictures(response: httpx.Response) -> dict[str, int]:
    assert response.status_code == 200
    return {row["group"]: row["pictures"] for row in response.json()["rows"]}


@pytest.mark.parametrize(
    ("caller", "query", "expected"),
    [
        (as_operator(), {}, {"": 1042}),
        (as_operator(), {"group_by": "user"}, {"ada": 1002, "bob": 40}),
        (as_operator(), {"group_by": "key"}, {"key_a": 1000, "key_b": 2, "key_c": 40}),
        (as_operator(), {"group_by": "tier"}, {"pro": 1042}),
        (as_operator(), {"group_by": "day"}, {"2026-11-21": 1040, "2026-11-22": 2}),
        (as_operator(), {"group_by": "key", "user": "ada"}, {"key_a": 1000, "key_b": 2}),
        (as_operator(), {"key_id": "key_c"}, {"": 40}),
        (as_operator(), {"key_id": "key_c", "from": "2026-10-01"}, {"": 41}),
        (as_user("ada"), {"group_by": "user"}, {"ada": 1002}),
        (as_user("ada"), {"user": "ada", "key_id": "key_b"}, {"": 2}),
        (as_user("ada"), {"key_id": "key_c"}, {"": 0}),  # somebody else's
        (as_user("eve"), {}, {"": 0}),
    ],
)
async def test_usage_is_shown_to_whom_it_concerns(
    world: World, caller: dict[str, str], query: dict[str, str], expected: dict[str, int]
) -> None:
    response = await world.client.get("/api/v1/usage", params={**NOVEMBER, **query}, headers=caller)
    assert pictures(response) == expected


async def test_an_invoice_has_priced_lines_and_their_sum(world: World) -> None:
    response = await world.client.get(INVOICE, params={"month": "2026-11"}, headers=as_operator())

    invoice = response.json()
    assert response.headers["Content-Type"] == "application/json"
    assert [(line["user"], line["quantity"], line["amount"]) for line in invoice["lines"]] == [
        ("ada", 1000, "0.500000"),
        ("ada", 2, "0.001000"),
        ("bob", 40, "0.020000"),
    ]
    assert (invoice["month"], invoice["total"], invoice["total_micros"]) == ("2026-11", "0.521000", 521_000)


async def test_a_users_invoice_is_their_own(world: World) -> None:
    responses = [
        await world.client.get(INVOICE, params={"month": "2026-11"}, headers=as_user("bob")),
        await world.client.get(INVOICE, params={"month": "2026-11", "user": "bob"}, headers=as_operator()),
    ]

    assert [response.json()["total"] for response in responses] == ["0.020000"] * 2


@pytest.mark.parametrize(
    ("accept", "query", "media_type"),
    [
        (None, {}, "application/json"),
        ("*/*", {}, "application/json"),
        ("text/csv", {}, "text/csv"),
        ("Text/CSV; charset=utf-8", {}, "text/csv"),
        ("text/csv, */*;q=0.1", {}, "text/csv"),
        ("application/json, text/csv", {}, "application/json"),
        ("text/html", {"format": "csv"}, "text/csv"),
        ("text/csv", {"format": "json"}, "application/json"),
    ],
)
async def test_an_invoice_comes_in_the_form_that_is_asked_for(
    world: World, accept: str | None, query: dict[str, str], media_type: str
) -> None:
    headers = {**as_operator(), **({} if accept is None else {"Accept": accept})}
    response = await world.client.get(INVOICE, params={"month": "2026-11", **query}, headers=headers)

    assert response.status_code == 200
    assert response.headers["Content-Type"].partition(";")[0] == media_type
    assert response.headers["Vary"] == "Accept"


async def test_a_spreadsheet_reads_the_same_lines(world: World) -> None:
    query = {"month": "2026-11", "format": "csv"}
    response = await world.client.get(INVOICE, params=query, headers=as_operator())

    rows = list(csv.DictReader(response.text.splitlines()))
    assert response.headers["Content-Disposition"] == 'attachment; filename="invoice-2026-11.csv"'
    assert [(row["user"], row["quantity"], row["amount"]) for row in rows] == [
        ("ada", "1000", "0.500000"),
        ("ada", "2", "0.001000"),
        ("bob", "40", "0.020000"),
    ]


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"month": "2026-13"},
        {"month": "9999-12"},
        {"month": "1999-12"},
        {"month": "2026-11", "format": "pdf"},
        {"month": "2026-11", "year": "1"},
    ],
)
async def test_what_is_no_invoice_is_refused(world: World, query: dict[str, str]) -> None:
    assert_problem(
        await world.client.get(INVOICE, params=query, headers=as_operator()), 422, "invalid_request"
    )


@pytest.mark.parametrize("path", ["/api/v1/usage", f"{INVOICE}?month=2026-11"])
async def test_get_implies_head(world: World, path: str) -> None:
    assert (await world.client.head(path, headers=as_operator())).status_code == 200


@pytest.mark.parametrize("path", ["/api/v1/usage", f"{INVOICE}?month=2026-11"])
async def test_a_ledger_that_is_out_of_reach_is_a_503(tier: Tier, path: str) -> None:
    async with running_world(tier) as world:
        response = await world.client.get(path, headers=as_operator())

    assert_problem(response, 503, "backend_unavailable")
    assert "null" not in response.text


async def test_what_is_wrong_with_our_set_up_is_for_the_log(tier: Tier, bills: Bills) -> None:
    class Misconfigured:
        usage = bills.ledger.usage

        async def invoice(self, month: Month, *, user: str | None = None) -> Invoice:
            raise OperatorError("The tier table at /srv/secret/tiers.yaml has no price.")

    async with running_world(tier, ledger=Misconfigured()) as world:
        response = await world.client.get(f"{INVOICE}?month=2026-11", headers=as_operator())

    assert_problem(response, 500, "internal")
    assert "secret" not in response.text
