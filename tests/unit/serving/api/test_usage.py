"""`GET /v1/usage` and `/v1/deployments/{id}/usage`: what a key was used for, and no other's."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from serving.domain.tenant import Tier
from tests.support.problems import assert_problem
from tests.support.usage_events import make_event
from tests.support.world import World, make_contract, running_world
from tests.unit.serving.api.conftest import Bills

JPEG = {"Content-Type": "image/jpeg"}
NOVEMBER = {"from": "2026-11-01", "to": "2026-12-01"}
NOON = datetime(2026, 11, 21, 12, 59, 59, 999_999, tzinfo=UTC)


@pytest.fixture
def world(billing_world: World) -> World:
    return billing_world


async def new_key(world: World, **terms: Any) -> tuple[dict[str, str], str]:
    """Its header, and its id."""
    api_key = world.issue(**terms)
    return {"Authorization": f"Bearer {api_key}"}, (await world.keys.authenticate(api_key)).key_id


async def bill_three(bills: Bills, key_id: str) -> None:
    """Two answers to `shapes`, an hour apart, and one to `other` the day before; one of somebody else."""
    await bills.record(
        make_event("1", key_id=key_id, pictures=2, admitted_at=NOON),
        make_event("2", key_id=key_id, pictures=3, admitted_at=NOON + timedelta(microseconds=1)),
        make_event("3", key_id=key_id, deployment="other", admitted_at=NOON - timedelta(days=1)),
        make_event("4", key_id="key_of_another", admitted_at=NOON),
    )


def pictures(response: httpx.Response) -> dict[str, int]:
    assert response.status_code == 200
    return {row["group"]: row["pictures"] for row in response.json()["rows"]}


async def test_what_was_answered_is_what_is_billed(world: World, bills: Bills, jpeg: bytes) -> None:
    headers, _ = await new_key(world)
    for model in ("shapes", "shapes", "other"):
        await world.client.post(f"/v1/infer/{model}", content=jpeg, headers={**headers, **JPEG})
    await bills.record(*world.meter.recent())

    assert pictures(await world.client.get("/v1/usage", headers=headers)) == {"other": 1, "shapes": 2}


async def test_a_row_says_all_that_was_counted(world: World, bills: Bills) -> None:
    headers, key_id = await new_key(world)
    await bill_three(bills, key_id)
    response = await world.client.get("/v1/usage", params={**NOVEMBER, "group_by": "total"}, headers=headers)

    assert response.json() == {
        "from": "2026-11-01T00:00:00Z",
        "to": "2026-12-01T00:00:00Z",
        "group_by": "total",
        "rows": [
            {
                "group": "",
                "requests": 3,
                "pictures": 6,
                "pixels": 921_600,
                "received_bytes": 120_000,
                "inference_microseconds": 15_000,
                "amount": "0.003000",
                "amount_micros": 3000,
            }
        ],
    }


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, {"other": 1, "shapes": 5}),
        ({"group_by": "deployment"}, {"other": 1, "shapes": 5}),
        ({"group_by": "day"}, {"2026-11-20": 1, "2026-11-21": 5}),
        ({"group_by": "hour"}, {"2026-11-20T12": 1, "2026-11-21T12": 2, "2026-11-21T13": 3}),
        ({"group_by": "total", "from": "2026-11-21T13:00:00Z"}, {"": 3}),
        ({"group_by": "total", "to": "2026-11-21T13:00:00Z"}, {"": 3}),
        ({"group_by": "total", "from": "2026-11-22"}, {"": 0}),
        ({"from": "2026-11-22"}, {}),
    ],
)
async def test_it_is_added_up_as_asked(
    world: World, bills: Bills, query: dict[str, str], expected: dict[str, int]
) -> None:
    headers, key_id = await new_key(world)
    await bill_three(bills, key_id)

    response = await world.client.get("/v1/usage", params={**NOVEMBER, **query}, headers=headers)
    assert pictures(response) == expected


@pytest.mark.parametrize(
    "query",
    [{"group_by": "key"}, {"group_by": "user"}, {"key_id": "key_of_another"}, {"user": "ada"}, {"from": "x"}],
)
async def test_a_key_asks_about_itself_only(world: World, query: dict[str, str]) -> None:
    headers = world.bearer()
    for path in ("/v1/usage", "/v1/deployments/shapes/usage"):
        assert_problem(await world.client.get(path, params=query, headers=headers), 422, "invalid_request")


async def test_one_deployment_alone(world: World, bills: Bills) -> None:
    headers, key_id = await new_key(world)
    await bill_three(bills, key_id)

    async def ask(deployment: str, **query: str) -> dict[str, int]:
        params = {**NOVEMBER, **query}
        return pictures(
            await world.client.get(f"/v1/deployments/{deployment}/usage", params=params, headers=headers)
        )

    assert await ask("shapes") == {"": 5}
    assert await ask("other") == {"": 1}
    assert await ask("shapes", group_by="day") == {"2026-11-21": 5}
    assert await ask("other", **{"from": "2026-11-21"}) == {"": 0}


@pytest.mark.parametrize(
    ("deployment", "status", "code"), [("nothing", 404, "model_not_found"), ("other", 403, "forbidden")]
)
async def test_a_typo_does_not_read_as_nothing_used(
    world: World, deployment: str, status: int, code: str
) -> None:
    headers = world.bearer(models=["shapes", "nothing"])
    response = await world.client.get(f"/v1/deployments/{deployment}/usage", headers=headers)

    assert_problem(response, status, code)


async def test_a_model_that_is_gone_has_still_been_used(world: World, bills: Bills) -> None:
    headers, key_id = await new_key(world)
    await bills.record(make_event("1", key_id=key_id, deployment="retired", admitted_at=NOON))
    response = await world.client.get("/v1/deployments/retired/usage", params=NOVEMBER, headers=headers)

    assert pictures(response) == {"": 1}


async def test_a_model_that_is_being_loaded_has_not_been_used_yet(world: World) -> None:
    world.catalog.put(make_contract("coming"))
    world.backend.broken["coming"] = "not now"
    await world.lanes.refresh()
    await world.lanes.settle()

    response = await world.client.get("/v1/deployments/coming/usage", headers=world.bearer())
    assert pictures(response) == {"": 0}


@pytest.mark.parametrize("path", ["/v1/usage", "/v1/deployments/shapes/usage"])
async def test_it_takes_a_key_and_answers_head(world: World, path: str) -> None:
    assert_problem(await world.client.get(path), 401, "unauthenticated")
    assert (await world.client.head(path, headers=world.bearer())).status_code == 200


@pytest.mark.parametrize("name", ["%00", "shapes%00", "%0A", "%20"])
async def test_what_can_be_no_models_name_is_unknown_before_a_database_is_asked(
    tier: Tier, name: str
) -> None:
    async with running_world(tier) as world:  # whose ledger nobody can open
        response = await world.client.get(f"/v1/deployments/{name}/usage", headers=world.bearer())

    assert_problem(response, 404, "model_not_found")
