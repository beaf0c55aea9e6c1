"""What routes really answer is what the published schema says that they do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import numpy as np
import pytest
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from serving.domain.tenant import Tier
from tests.support.tiers import make_tier
from tests.support.usage_events import make_event
from tests.support.world import World, as_operator, as_user, encode, running_world
from tests.unit.serving.api.conftest import Bills

JPEG = {"Content-Type": "image/jpeg"}
WHITE = encode(np.full((64, 64, 3), 255, np.uint8))
NEW_KEY = {"user": "ada", "tier": "test", "expires_at": "2099-01-01T00:00:00Z"}

Send = Callable[..., Awaitable[httpx.Response]]


@pytest.fixture
def tier() -> Tier:
    return make_tier(monthly_quota=2)


@pytest.fixture
async def world(billing_world: World, bills: Bills) -> World:
    await bills.record(make_event("1", user="ada", pictures=3))
    return billing_world


@pytest.fixture
async def send(world: World) -> Send:
    """Like the client's `request`, with the route's template, and looks the answer up in the schema."""
    schema = (await world.client.get("/openapi.json")).json()

    async def send(method: str, template: str, path: str | None = None, **sent: Any) -> httpx.Response:
        response = await world.client.request(method, path or template, **sent)
        assert_as_published(schema, method, template, response)
        return response

    return send


def assert_as_published(schema: dict[str, Any], method: str, template: str, response: httpx.Response) -> None:
    documented = schema["paths"][template][method.lower()]["responses"][str(response.status_code)]
    for name, field in documented.get("headers", {}).items():
        if name in response.headers:
            validate(schema, field["schema"], response.headers[name])
        else:  # what is left out where it cannot be told, or has nothing to say
            assert name in {"RateLimit", "Retry-After", "Idempotency-Replayed"}, name
    media_type = response.headers["Content-Type"].partition(";")[0]
    body = response.text if media_type == "text/csv" else response.json()
    validate(schema, documented["content"][media_type]["schema"], body)


def validate(schema: dict[str, Any], part: dict[str, Any], value: Any) -> None:
    Draft202012Validator({**part, "components": schema["components"]}).validate(value)


async def test_keys_and_users(send: Send) -> None:
    issued = await send("POST", "/api/v1/keys", json=NEW_KEY, headers=as_operator())
    key = f"/api/v1/keys/{issued.json()['id']}"
    caller = as_user("ada")

    assert (issued.status_code, issued.headers["Location"]) == (201, key)
    for method, template, path, sent in (
        ("GET", "/api/v1/keys", "/api/v1/keys", {}),
        ("GET", "/api/v1/keys/{key_id}", key, {}),
        ("POST", "/api/v1/keys/{key_id}/rotate", f"{key}/rotate", {"json": {"overlap_seconds": 60}}),
        ("DELETE", "/api/v1/keys/{key_id}", key, {}),
    ):
        assert (await send(method, template, path, headers=caller, **sent)).status_code == 200
    stopped = await send(
        "POST", "/api/v1/users/{user}/disable", "/api/v1/users/ada/disable", headers=as_operator()
    )
    assert stopped.json()["enabled"] is False


@pytest.mark.parametrize("path", ["/v1/usage", "/api/v1/usage", "/api/v1/usage/invoice"])
async def test_usage_and_invoices(world: World, send: Send, path: str) -> None:
    headers = world.bearer() if path == "/v1/usage" else as_operator()
    query = {"month": "2026-11"} if path.endswith("invoice") else {"from": "2026-11-01T00:00:00.000Z"}

    assert (await send("GET", path, params=query, headers=headers)).status_code == 200
    if path.endswith("invoice"):
        in_csv = await send("GET", path, params={**query, "format": "csv"}, headers=headers)
        assert in_csv.headers["Content-Type"].startswith("text/csv")


async def test_inference_and_its_refusals(world: World, send: Send) -> None:
    route = ("POST", "/v1/infer/{deployment_id}", "/v1/infer/shapes")
    headers = {**world.bearer(), **JPEG}
    answers = [
        await send(*route, content=WHITE, headers={**headers, "Idempotency-Key": '"a";x=1'}),
        await send(*route, content=WHITE, headers={**headers, "Idempotency-Key": '"a"'}),
        await send(*route, json={"images": ["", "AAAA"]}, headers=world.bearer()),
        await send(*route, content=b"no picture", headers=headers),
        await send(*route, content=WHITE, headers=headers),
        await send(*route, content=WHITE, headers=headers),
        await send(*route, content=WHITE, headers=JPEG),
        await send(*route, content=WHITE, headers={"Authorization": "Bearer pk_wrong", **JPEG}),
    ]

    assert answers[1].headers["Idempotency-Replayed"] == "true"
    assert [answer.status_code for answer in answers] == [200, 200, 200, 422, 200, 429, 401, 401]


async def test_models_and_probes(world: World, send: Send) -> None:
    for template, path in (
        ("/v1/models", "/v1/models"),
        ("/v1/models/{name}", "/v1/models/shapes"),
        ("/healthz", "/healthz"),
        ("/readyz", "/readyz"),
    ):
        assert (await send("GET", template, path, headers=world.bearer())).status_code == 200
    unknown = await send("GET", "/v1/models/{name}", "/v1/models/nothing", headers=world.bearer())
    assert unknown.status_code == 404


async def test_another_method_is_documented_where_the_path_is(tier: Tier) -> None:
    async with running_world(tier) as world:
        schema = (await world.client.get("/openapi.json")).json()
        response = await world.client.put("/api/v1/keys", headers=as_operator())

    assert response.status_code == 405
    for method in ("get", "post"):
        assert_as_published(schema, method, "/api/v1/keys", response)


async def test_what_the_schema_does_not_say_is_noticed(world: World) -> None:
    schema = (await world.client.get("/openapi.json")).json()
    response = await world.client.get("/healthz")
    schema["components"]["schemas"]["Health"]["properties"]["status"]["const"] = "well"

    with pytest.raises(ValidationError):
        assert_as_published(schema, "get", "/healthz", response)
