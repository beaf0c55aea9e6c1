"""What is beside `POST /v1/infer`: probes, the list of models, other methods, the published schema."""

from __future__ import annotations

import pytest

from tests.support.problems import assert_problem
from tests.support.world import World

# Spec, section 2.
CODES = [
    (401, "unauthenticated"),
    (401, "key_expired"),
    (401, "key_revoked"),
    (403, "forbidden"),
    (404, "model_not_found"),
    (413, "payload_too_large"),
    (415, "unsupported_media_type"),
    (422, "invalid_request"),
    (422, "image_undecodable"),
    (422, "image_too_large"),
    (429, "rate_limited"),
    (429, "quota_exceeded"),
    (503, "overloaded"),
    (503, "backend_unavailable"),
    (504, "timeout"),
    (500, "internal"),
]


async def test_it_is_ready_while_every_model_can_be_asked(world: World) -> None:
    before = await world.client.get("/readyz")
    world.backend.unavailable.add("other")
    without = await world.client.get("/readyz")
    up = await world.client.get("/healthz")
    world.backend.unavailable.clear()
    after = await world.client.get("/readyz")

    assert [response.status_code for response in (before, without, up, after)] == [200, 503, 200, 200]
    assert without.json() == {"ready": False, "checks": {"shapes": True, "other": False}}


@pytest.mark.parametrize(
    ("models", "listed"), [(None, ["other", "shapes"]), (["other"], ["other"]), (["retired"], [])]
)
async def test_a_key_sees_the_models_that_it_may_use(
    world: World, models: list[str] | None, listed: list[str]
) -> None:
    response = await world.client.get("/v1/models", headers=world.bearer(models=models))

    assert response.status_code == 200
    assert sorted(model["id"] for model in response.json()["models"]) == listed


async def test_without_a_key_there_is_no_list(world: World) -> None:
    assert_problem(await world.client.get("/v1/models"), 401, "unauthenticated")


@pytest.mark.parametrize("path", ["/v1/infer", "/v1/infer/shapes"])
@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PUT", "DELETE"])
async def test_another_method_is_a_problem(world: World, method: str, path: str) -> None:
    response = await world.client.request(method, path, headers=world.bearer())

    assert response.status_code == 405
    assert response.headers["Allow"] == "POST"
    if method != "HEAD":
        assert_problem(response, 405, "method_not_allowed")


@pytest.mark.parametrize("path", ["/v1/infer", "/v1/infer/{deployment_id}"])
@pytest.mark.parametrize(("status", "code"), CODES)
async def test_every_code_is_documented_under_its_status(
    world: World, path: str, status: int, code: str
) -> None:
    schema = (await world.client.get("/openapi.json")).json()

    documented = schema["paths"][path]["post"]["responses"][str(status)]["description"]
    assert code in documented.split(", ")
