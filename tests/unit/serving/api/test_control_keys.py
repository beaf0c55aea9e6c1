"""`/api/v1/keys` and `/api/v1/users`: what the operator may do, what users may, and what either is told."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import orjson
import pytest

from serving.adapters.memory.keys import InMemoryKeyStore
from serving.api.control_requests import MAX_BODY_BYTES
from serving.domain.key_record import MAX_NAME_CHARACTERS, KeyRecord
from serving.domain.tenant import Tier
from serving.errors import OperatorError
from tests.support.problems import assert_problem
from tests.support.world import World, as_operator, as_user, running_world

WANTED = {"user": "ada", "tier": "test"}
NOBODY: dict[str, str] = {}


async def create(world: World, **wanted: Any) -> dict[str, Any]:
    response = await world.client.post("/api/v1/keys", json={**WANTED, **wanted}, headers=as_operator())
    assert response.status_code == 201
    created: dict[str, Any] = response.json()
    return created


async def opens(world: World, api_key: str) -> str:
    """What the data plane says to a key: `ok`, or the code of its refusal."""
    response = await world.client.get("/v1/models", headers={"Authorization": f"Bearer {api_key}"})
    return "ok" if response.status_code == 200 else str(response.json()["code"])


async def rotate(world: World, key_id: str, caller: dict[str, str], overlap_seconds: int) -> httpx.Response:
    body = {"overlap_seconds": overlap_seconds}
    return await world.client.post(f"/api/v1/keys/{key_id}/rotate", json=body, headers=caller)


async def test_a_key_is_issued_and_works_at_once(world: World) -> None:
    expires_at = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
    body = {**WANTED, "models": ["shapes", "other"], "expires_at": expires_at.isoformat()}
    response = await world.client.post("/api/v1/keys", json=body, headers=as_operator())

    issued = response.json()
    assert response.status_code == 201
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["Location"] == f"/api/v1/keys/{issued['id']}"
    assert (issued["user"], issued["tier"], issued["state"]) == ("ada", "test", "active")
    assert issued["models"] == ["other", "shapes"]
    assert datetime.fromisoformat(issued["expires_at"]) == expires_at
    assert issued["api_key"].startswith(issued["secrets"][0]["prefix"] + "_")
    assert await opens(world, issued["api_key"]) == "ok"


async def test_the_secret_is_shown_once(world: World) -> None:
    issued = await create(world)
    secret = issued.pop("api_key").split("_")[2]
    answers = [
        await world.client.get("/api/v1/keys", headers=as_operator()),
        await world.client.get(f"/api/v1/keys/{issued['id']}", headers=as_user("ada")),
        await rotate(world, issued["id"], as_user("ada"), 60),
        await world.client.delete(f"/api/v1/keys/{issued['id']}", headers=as_user("ada")),
    ]

    assert [answer.status_code for answer in answers] == [200] * 4
    assert answers[1].json() == issued
    assert not any(secret in answer.text for answer in answers)
    assert ["api_key" in answer.text for answer in answers] == [False, False, True, False]


NO_KEYS: list[dict[str, Any]] = [
    {"user": ""},
    {"user": " "},
    {"user": "a\nb"},
    {"user": "x" * 201},
    {"user": 7},
    {"tier": "platinum"},
    {"models": []},
    {"models": "shapes"},
    {"models": [""]},
    {"models": ["m"] * 1001},
    {"expires_at": "2020-01-01T00:00:00Z"},
    {"expires_at": "2099-01-01T00:00:00"},  # of which zone?
    {"expires_at": "2099-01-01"},
    {"expires_at": 4_070_908_800},
    {"expires_at": "4070908800"},
    {"expires_at": "2099-01-01 00:00:00Z"},
    {"expires_at": "2099-02-30T00:00:00Z"},
    {"expires_at": "9999-12-31T23:59:59-14:00"},
    {"expires_at": "9000-01-01T00:00:00Z"},
    {"expires_at": "0001-01-01T00:00:00+14:00"},
    {"expires_at": "soon"},
    {"id": "key_of_my_own"},
]


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"null", b"[]", b"{}", b'"ada"', b'{"user": "ada"}', b'{"tier": "test"}'),
        *(orjson.dumps({**WANTED, **change}) for change in NO_KEYS),
    ],
)
async def test_what_no_key_can_be_is_refused_in_words(world: World, body: bytes) -> None:
    response = await world.client.post("/api/v1/keys", content=body, headers=as_operator())

    assert_problem(response, 422, "invalid_request")
    assert response.json()["detail"]
    assert not await world.keys.list()


async def test_a_tier_that_is_none_is_answered_with_those_there_are(world: World) -> None:
    body = {**WANTED, "tier": "platinum"}
    response = await world.client.post("/api/v1/keys", json=body, headers=as_operator())

    assert "the tiers are test" in response.json()["detail"]


async def test_a_body_has_a_bound(world: World) -> None:
    body = b" " * (MAX_BODY_BYTES + 1)
    response = await world.client.post("/api/v1/keys", content=body, headers=as_operator())

    assert_problem(response, 413, "payload_too_large")
    assert world.held_bytes.held == 0


EVERY_ROUTE = [
    ("POST", "/api/v1/keys"),
    ("GET", "/api/v1/keys"),
    ("GET", "/api/v1/keys/key_1"),
    ("DELETE", "/api/v1/keys/key_1"),
    ("POST", "/api/v1/keys/key_1/rotate"),
    ("POST", "/api/v1/users/ada/disable"),
    ("POST", "/api/v1/users/ada/enable"),
    ("GET", "/api/v1/usage"),
    ("GET", "/api/v1/usage/invoice?month=2026-11"),
]


@pytest.mark.parametrize(("method", "path"), EVERY_ROUTE)
async def test_nobody_gets_in_without_a_token(world: World, method: str, path: str) -> None:
    for caller in (NOBODY, world.bearer(), {"Authorization": "Bearer x"}, {"Authorization": "Basic dTpw"}):
        response = await world.client.request(method, path, headers=caller)

        assert_problem(response, 401, "unauthenticated")
        asked = response.headers["WWW-Authenticate"]
        sent = caller.get("Authorization", "").startswith("Bearer")
        assert asked == 'Bearer realm="visiongate"' + (', error="invalid_token"' if sent else "")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/v1/keys"),
        ("GET", "/api/v1/keys?user=bob"),
        ("POST", "/api/v1/users/ada/disable"),
        ("POST", "/api/v1/users/ada/enable"),
        ("GET", "/api/v1/usage?user=bob"),
        ("GET", "/api/v1/usage/invoice?month=2026-11&user=bob"),
    ],
)
async def test_what_is_the_operators_is_not_a_users(world: World, method: str, path: str) -> None:
    response = await world.client.request(method, path, json=WANTED, headers=as_user("ada"))

    assert_problem(response, 403, "forbidden")
    assert not await world.keys.history()


async def test_a_user_sees_their_own_keys_and_the_operator_everybodys(world: World) -> None:
    ada, bob = await create(world), await create(world, user="bob")

    async def listed(caller: dict[str, str], **query: str) -> list[str]:
        response = await world.client.get("/api/v1/keys", params=query, headers=caller)
        return [key["id"] for key in response.json()["keys"]]

    assert sorted(await listed(as_operator())) == sorted([ada["id"], bob["id"]])
    assert await listed(as_operator(), user="bob") == [bob["id"]]
    assert await listed(as_user("ada")) == [ada["id"]]
    assert await listed(as_user("ada"), user="ada") == [ada["id"]]
    assert await listed(as_user("eve")) == []


@pytest.mark.parametrize(("method", "verb"), [("GET", ""), ("DELETE", ""), ("POST", "/rotate")])
async def test_anothers_key_is_as_good_as_none(world: World, method: str, verb: str) -> None:
    issued = await create(world)
    body = {"overlap_seconds": 0}

    def ask(key_id: str) -> Any:
        path = f"/api/v1/keys/{key_id}{verb}"
        return world.client.request(method, path, json=body, headers=as_user("eve"))

    anothers, none = await ask(issued["id"]), await ask("key_of_nobody")

    assert_problem(anothers, 404, "key_not_found")
    assert_problem(none, 404, "key_not_found")
    assert anothers.json()["detail"].replace(issued["id"], "") == (
        none.json()["detail"].replace("key_of_nobody", "")
    )
    assert await opens(world, issued["api_key"]) == "ok"


@pytest.mark.parametrize(("caller", "actor"), [(as_operator(), "admin"), (as_user("ada"), "user:ada")])
async def test_a_key_is_revoked_once_and_for_good(world: World, caller: dict[str, str], actor: str) -> None:
    issued = await create(world)
    path = f"/api/v1/keys/{issued['id']}"
    first, second = [await world.client.delete(path, headers=caller) for _ in range(2)]

    assert (first.json()["state"], second.json()) == ("revoked", first.json())
    assert await opens(world, issued["api_key"]) == "key_revoked"
    changes = [(row.change.action, row.change.actor) for row in await world.keys.history()]
    assert changes == [("created", "admin"), ("revoked", actor)]


async def test_a_user_with_the_longest_name_changes_their_own_keys(world: World) -> None:
    user = "a" * MAX_NAME_CHARACTERS
    issued = await create(world, user=user)

    rotated = await rotate(world, issued["id"], as_user(user), 60)
    revoked = await world.client.delete(f"/api/v1/keys/{issued['id']}", headers=as_user(user))

    assert (rotated.status_code, revoked.status_code) == (200, 200)
    assert {row.change.actor for row in await world.keys.history()} == {"admin", f"user:{user}"}


class Refusing(InMemoryKeyStore):
    async def revoke(self, key_id: str, *, actor: str) -> KeyRecord:
        raise OperatorError("Not this one.")


async def test_what_a_revocation_is_refused_for_is_told(tier: Tier) -> None:
    async with running_world(tier, make_keys=Refusing) as world:
        issued = await create(world)
        response = await world.client.delete(f"/api/v1/keys/{issued['id']}", headers=as_operator())

    assert_problem(response, 422, "invalid_request")
    assert response.json()["detail"] == "Not this one."


class Unasked(InMemoryKeyStore):
    async def get(self, key_id: str) -> KeyRecord | None:
        raise AssertionError(f"{key_id!r} must not come to a database")


@pytest.mark.parametrize("key_id", ["%00", "key_1%00", "%0A", "%20", "k" * 201])
@pytest.mark.parametrize(("method", "verb"), [("GET", ""), ("DELETE", ""), ("POST", "/rotate")])
async def test_what_can_be_no_keys_id_is_unknown(tier: Tier, method: str, verb: str, key_id: str) -> None:
    async with running_world(tier, make_keys=Unasked) as world:
        path = f"/api/v1/keys/{key_id}{verb}"
        response = await world.client.request(
            method, path, json={"overlap_seconds": 0}, headers=as_operator()
        )

    assert_problem(response, 404, "key_not_found")


@pytest.mark.parametrize("user", ["%00", "a%00b", "%20", "%E2%80%8B"])
async def test_what_can_be_no_users_name_is_refused(world: World, user: str) -> None:
    for path in ("/api/v1/keys?", "/api/v1/usage?", "/api/v1/usage/invoice?month=2026-11&"):
        response = await world.client.get(f"{path}user={user}", headers=as_operator())
        assert_problem(response, 422, "invalid_request")


async def test_after_a_rotation_both_work_while_they_overlap(world: World) -> None:
    issued = await create(world)
    response = await rotate(world, issued["id"], as_user("ada"), 60)
    rotated = response.json()

    assert response.headers["Cache-Control"] == "no-store"
    assert rotated["id"] == issued["id"]
    assert [await opens(world, each["api_key"]) for each in (issued, rotated)] == ["ok", "ok"]
    earlier, newest = rotated["secrets"]
    assert newest["expires_at"] is None
    left = datetime.fromisoformat(earlier["expires_at"]) - datetime.now(UTC)
    assert timedelta(seconds=30) < left <= timedelta(seconds=60)


async def test_without_overlap_the_earlier_one_ends(world: World) -> None:
    issued = await create(world)
    rotated = (await rotate(world, issued["id"], as_operator(), 0)).json()

    assert [await opens(world, each["api_key"]) for each in (issued, rotated)] == ["key_expired", "ok"]


@pytest.mark.parametrize(
    "body",
    [{}, *({"overlap_seconds": overlap} for overlap in (-1, "60", 1.5, None, True, 10**9))],
)
async def test_an_overlap_is_said_in_whole_seconds(world: World, body: dict[str, Any]) -> None:
    issued = await create(world)
    path = f"/api/v1/keys/{issued['id']}/rotate"

    assert_problem(await world.client.post(path, json=body, headers=as_operator()), 422, "invalid_request")
    assert await opens(world, issued["api_key"]) == "ok"


async def test_a_key_that_is_over_is_not_rotated(world: World) -> None:
    issued = await create(world)
    await world.client.delete(f"/api/v1/keys/{issued['id']}", headers=as_operator())

    assert_problem(await rotate(world, issued["id"], as_user("ada"), 60), 422, "invalid_request")


@pytest.mark.parametrize("user", ["ada", "team/ada", "ada@example.org", "ä b"])
async def test_a_user_is_stopped_and_let_in_again(world: World, user: str) -> None:
    keys = [await create(world, user=user) for _ in range(2)]
    others = await create(world, user="bob")

    async def switch(verb: str) -> Any:
        path = f"/api/v1/users/{user}/{verb}"
        return (await world.client.post(path, headers=as_operator())).json()

    assert await switch("disable") == {"user": user, "enabled": False, "keys": 2}
    assert [await opens(world, each["api_key"]) for each in (*keys, others)] == ["key_revoked"] * 2 + ["ok"]
    assert await switch("enable") == {"user": user, "enabled": True, "keys": 2}
    assert await opens(world, keys[0]["api_key"]) == "ok"


async def test_a_name_that_is_none_is_not_stopped(world: World) -> None:
    response = await world.client.post("/api/v1/users/a%07b/disable", headers=as_operator())
    assert_problem(response, 422, "invalid_request")


@pytest.mark.parametrize("path", ["/api/v1/keys", "/api/v1/keys/{key_id}"])
async def test_get_implies_head(world: World, path: str) -> None:
    issued = await create(world)
    response = await world.client.head(path.format(key_id=issued["id"]), headers=as_operator())

    assert (response.status_code, response.content) == (200, b"")


async def test_what_the_log_says_is_who_did_it_and_no_token(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    issued = await create(world)

    facts = [vars(record).get("facts", {}) for record in caplog.records]
    assert [each["actor"] for each in facts if each.get("route") == "/api/v1/keys"] == ["admin"]
    told = repr([vars(record) for record in caplog.records])
    assert as_operator()["Authorization"].split()[1] not in told
    assert issued["api_key"].split("_")[2] not in told
