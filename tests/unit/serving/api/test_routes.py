"""What is beside `POST /v1/infer`: probes, the list of models, other methods."""

from __future__ import annotations

import numpy as np
import orjson
import pytest

from serving.domain.contract import ModelContract
from tests.support.contracts import metadata
from tests.support.problems import assert_problem
from tests.support.world import World, encode, make_contract

JPEG = {"Content-Type": "image/jpeg"}
WHITE = encode(np.full((64, 64, 3), 255, np.uint8))


async def test_it_is_ready_while_every_model_can_be_asked(world: World) -> None:
    before = await world.client.get("/readyz")
    world.backend.unavailable.add("other")
    without = await world.client.get("/readyz")
    up = await world.client.get("/healthz")
    world.backend.unavailable.clear()
    after = await world.client.get("/readyz")

    assert [response.status_code for response in (before, without, up, after)] == [200, 503, 200, 200]
    assert without.json() == {"ready": False, "checks": {"shapes": True, "other": False}, "degraded": []}


async def test_what_is_degraded_is_told_and_leaves_it_ready(world: World) -> None:
    world.degraded.append("accounts")
    response = await world.client.get("/readyz")

    assert response.status_code == 200
    assert response.json() == {
        "ready": True,
        "checks": {"shapes": True, "other": True},
        "degraded": ["accounts"],
    }


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


async def test_one_model_says_what_its_export_proved(world: World) -> None:
    proof = {"passed": True, "pictures": 18}
    raw = metadata("proven", side=64, anchors=3, classes=["cat", "dog"]) | {"validation": proof}
    world.catalog.put(ModelContract.parse(orjson.dumps(raw)))
    await world.lanes.refresh()
    await world.lanes.settle()

    response = await world.client.get("/v1/models/proven", headers=world.bearer())

    described = response.json()
    assert response.status_code == 200
    assert (described["id"], described["version"]) == ("proven", "1")
    assert described["validation"] == proof
    assert described["performance"] is None
    assert described["contract"] == world.lanes.get("proven").contract.sha256


async def test_a_model_that_is_refused_says_why_to_whom_it_concerns(world: World) -> None:
    world.catalog.refused["masks"] = "it is for segmentation"
    await world.lanes.refresh()

    for method, path in (("GET", "/v1/models/masks"), ("POST", "/v1/infer/masks")):
        told = await world.client.request(method, path, headers={**world.bearer(), **JPEG}, content=WHITE)
        assert_problem(told, 404, "model_not_found")
        assert "segmentation" in told.json()["detail"]
        others = {**world.bearer(models=["shapes"]), **JPEG}
        refused = await world.client.request(method, path, headers=others, content=WHITE)
        assert_problem(refused, 403, "forbidden")
        assert "segmentation" not in refused.text


@pytest.mark.parametrize(
    ("name", "status", "code"), [("absent", 404, "model_not_found"), ("other", 403, "forbidden")]
)
async def test_one_model_is_for_those_who_may_use_it(world: World, name: str, status: int, code: str) -> None:
    response = await world.client.get(f"/v1/models/{name}", headers=world.bearer(models=["shapes", "absent"]))

    assert_problem(response, status, code)


async def test_a_model_that_is_being_loaded_is_not_there_yet(world: World) -> None:
    world.catalog.put(make_contract("coming"))
    world.backend.broken["coming"] = "not now"
    await world.lanes.refresh()
    await world.lanes.settle()

    response = await world.client.get("/v1/models/coming", headers=world.bearer())

    assert_problem(response, 503, "backend_unavailable")
    assert "not now" not in response.text


@pytest.mark.parametrize("path", ["/v1/infer", "/v1/infer/shapes"])
@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PUT", "DELETE"])
async def test_another_method_is_a_problem(world: World, method: str, path: str) -> None:
    response = await world.client.request(method, path, headers=world.bearer())

    assert response.status_code == 405
    assert response.headers["Allow"] == "POST"
    if method != "HEAD":
        assert_problem(response, 405, "method_not_allowed")


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/models", "GET, HEAD"),
        ("/v1/models/shapes", "GET, HEAD"),
        ("/v1/usage", "GET, HEAD"),
        ("/api/v1/keys", "GET, HEAD, POST"),
        ("/api/v1/keys/key_1", "GET, HEAD, DELETE"),
        ("/api/v1/keys/key_1/rotate", "POST"),
        ("/api/v1/users/team/ada/disable", "POST"),
        ("/healthz", "GET, HEAD"),
    ],
)
@pytest.mark.parametrize("method", ["PUT", "TRACE"])
async def test_what_is_allowed_is_what_any_route_at_the_path_takes(
    world: World, method: str, path: str, allowed: str
) -> None:
    response = await world.client.request(method, path)

    assert_problem(response, 405, "method_not_allowed")
    assert response.headers["Allow"] == allowed


async def test_where_there_is_nothing_no_method_is_allowed(world: World) -> None:
    response = await world.client.put("/v1/nothing")

    assert_problem(response, 404, "not_found")
    assert "Allow" not in response.headers


@pytest.mark.parametrize(
    ("target", "instance"),
    [
        ("/v1/n%C3%B6", "/v1/n%C3%B6"),
        ("/v1/a%3Fb%23c", "/v1/a%3Fb%23c"),
        ("//evil.example/v1", "/%2Fevil.example/v1"),
        ("/%2Fevil.example", "/%2Fevil.example"),
    ],
)
async def test_a_problem_names_the_path_and_no_other_host(world: World, target: str, instance: str) -> None:
    response = await world.client.get(f"http://gateway{target}")

    assert_problem(response, 404, "not_found")
    assert response.json()["instance"] == instance
