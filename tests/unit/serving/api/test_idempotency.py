"""`Idempotency-Key`: one answer and one bill, however often, and in whatever form, the request is sent."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from dataclasses import replace
from typing import Any

import httpx
import pytest

from serving.api.request_forms import MAX_PICTURES_ASKED_AGAIN
from serving.domain.tenant import Tier
from tests.support.gate import Gate
from tests.support.problems import assert_problem
from tests.support.tiers import make_tier
from tests.support.world import World, running_world, three_anchors

UUID = "8e03978e-40d5-43e8-bc93-6894a57f9324"
NAMED = {"Idempotency-Key": f'"{UUID}"'}
JPEG = {"Content-Type": "image/jpeg"}


@pytest.fixture
def tier() -> Tier:
    return make_tier(rate=1, burst=10, monthly_quota=10)


async def post(world: World, headers: dict[str, str], picture: bytes, **sent: Any) -> httpx.Response:
    return await world.client.post(
        "/v1/infer/shapes", content=picture, headers={**headers, **NAMED, **JPEG}, **sent
    )


def multipart(picture: bytes, boundary: str) -> dict[str, Any]:
    lines = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'.encode(),
        picture,
        f"\r\n--{boundary}--\r\n".encode(),
    )
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    return {"content": b"".join(lines), "headers": headers}


async def test_the_second_answer_is_the_first_and_costs_nothing(world: World, jpeg: bytes) -> None:
    headers = world.bearer()
    first, second = [await post(world, headers, jpeg) for _ in range(2)]
    other = await world.client.post("/v1/infer/shapes", content=jpeg, headers={**headers, **JPEG})

    assert (first.status_code, second.status_code) == (200, 200)
    assert second.content == first.content
    assert second.headers["X-Model-Contract"] == first.headers["X-Model-Contract"]
    assert second.headers["Idempotency-Replayed"] == "true"
    assert "Idempotency-Replayed" not in first.headers
    assert second.headers["RateLimit"].startswith('"burst";r=9')
    assert other.headers["RateLimit"].startswith('"burst";r=8')
    billed = [event.request_id for event in world.meter.recent()]
    assert billed == [first.json()["request_id"], other.json()["request_id"]]


async def test_a_repeated_answer_is_a_request_of_its_own_in_the_logs(world: World, jpeg: bytes) -> None:
    headers = world.bearer()
    first, second = [await post(world, headers, jpeg) for _ in range(2)]

    assert second.json()["request_id"] == first.headers["X-Request-ID"]
    assert second.headers["X-Request-ID"] != first.headers["X-Request-ID"]


async def test_the_form_that_a_request_comes_in_does_not_count(world: World, jpeg: bytes) -> None:
    headers = world.bearer()
    forms: list[dict[str, Any]] = [
        multipart(jpeg, "one"),
        multipart(jpeg, "another"),
        {"content": jpeg, "headers": JPEG},
        {"json": {"image": b64encode(jpeg).decode(), "model": "shapes"}},
        {"content": jpeg, "headers": {**JPEG, "Idempotency-Key": UUID}},  # without its quotes
    ]
    answers = [
        await world.client.post(
            "/v1/infer/shapes", **{**form, "headers": {**headers, **NAMED, **form.get("headers", {})}}
        )
        for form in forms
    ]

    assert [answer.status_code for answer in answers] == [200] * len(forms)
    assert len({answer.content for answer in answers}) == 1
    assert len(world.meter.recent()) == 1


async def test_how_a_request_is_put_does_not_count(world: World, jpeg: bytes) -> None:
    """Its only model may be named, or not; classes come in any order, and their ids as numbers or words."""
    headers = {**world.bearer(models=["shapes"]), **NAMED}
    picture = b64encode(jpeg).decode()
    in_a_body: list[dict[str, Any]] = [
        {"image": picture, "model": "shapes", "classes": each} for each in (["dog", 0], [0, "dog"])
    ]
    answers = [await world.client.post("/v1/infer", json=body, headers=headers) for body in in_a_body]
    for path, classes in (("/v1/infer", "0,dog"), ("/v1/infer/shapes", "dog,0")):
        answers.append(
            await world.client.post(
                path, content=jpeg, params={"classes": classes}, headers={**headers, **JPEG}
            )
        )

    assert [answer.status_code for answer in answers] == [200] * 4
    assert len({answer.content for answer in answers}) == 1
    assert len(world.meter.recent()) == 1


@pytest.mark.parametrize("form", ["json", "multipart"])
async def test_a_list_is_answered_again_when_its_tier_allows_fewer(
    world: World, jpeg: bytes, tier: Tier, form: str
) -> None:
    headers = world.bearer()
    forms: dict[str, dict[str, Any]] = {
        "json": {"json": {"images": [b64encode(jpeg).decode()] * 3}},
        "multipart": {"files": [("image", ("a.jpg", jpeg, "image/jpeg"))] * 3},
    }

    async def ask(more: dict[str, str]) -> httpx.Response:
        return await world.client.post("/v1/infer/shapes", **forms[form], headers={**headers, **more})

    first = await ask(NAMED)
    world.tiers[tier.name] = replace(tier, max_pictures_per_request=2)
    again, new, unnamed = await ask(NAMED), await ask({"Idempotency-Key": "new"}), await ask({})

    assert (first.status_code, again.status_code) == (200, 200)
    assert again.content == first.content
    assert again.headers["Idempotency-Replayed"] == "true"
    for refused in (new, unnamed):
        assert_problem(refused, 422, "invalid_request")
    assert [event.pictures for event in world.meter.recent()] == [3]


async def test_no_more_pictures_are_read_than_any_list_ever_had(world: World) -> None:
    headers = {**world.bearer(), **NAMED}
    body = {"images": [""] * (MAX_PICTURES_ASKED_AGAIN + 1)}
    refused = await world.client.post("/v1/infer/shapes", json=body, headers=headers)

    assert_problem(refused, 422, "invalid_request")
    assert f"more than the {MAX_PICTURES_ASKED_AGAIN} allowed" in refused.json()["detail"]


@pytest.mark.parametrize(
    "change", [{"params": {"max_detections": 1}}, {"params": {"model": "shapes"}, "picture": b""}]
)
async def test_another_request_under_the_same_name_is_refused(
    world: World, jpeg: bytes, dark_png: bytes, change: dict[str, Any]
) -> None:
    headers = world.bearer()
    await post(world, headers, jpeg)
    picture = dark_png if "picture" in change else jpeg
    refused = await post(world, headers, picture, params=change["params"])

    assert_problem(refused, 422, "idempotency_key_reused")
    assert len(world.meter.recent()) == 1


async def test_each_key_has_names_of_its_own(world: World, jpeg: bytes, dark_png: bytes) -> None:
    ours = await post(world, world.bearer(), jpeg)
    theirs = await post(world, world.bearer(), dark_png)

    assert [ours.status_code, theirs.status_code] == [200, 200]
    assert ours.content != theirs.content
    assert len(world.meter.recent()) == 2


async def test_while_the_first_is_under_way_the_second_is_asked_to_wait(tier: Tier, jpeg: bytes) -> None:
    gate = Gate(three_anchors)
    async with running_world(tier, model=gate.model) as world:
        headers = world.bearer()
        first = asyncio.create_task(post(world, headers, jpeg))
        await gate.reached()
        meanwhile = await post(world, headers, jpeg)
        gate.opened.set()
        answered = await first
        afterwards = await post(world, headers, jpeg)

    assert_problem(meanwhile, 409, "idempotency_key_in_use")
    assert int(meanwhile.headers["Retry-After"]) >= 1
    assert afterwards.content == answered.content
    assert len(world.meter.recent()) == 1


async def test_a_request_that_failed_leaves_its_name_free(world: World, jpeg: bytes) -> None:
    headers = world.bearer()
    failed = await post(world, headers, b"no picture")
    corrected = await post(world, headers, jpeg)

    assert_problem(failed, 422, "image_undecodable")
    assert corrected.status_code == 200
    assert "Idempotency-Replayed" not in corrected.headers


@pytest.mark.parametrize("key", ['""', "two words", '"open', '"a";B', "x" * 256])
async def test_a_name_that_is_not_understood_is_refused_and_not_overlooked(
    world: World, jpeg: bytes, key: str
) -> None:
    headers = {**world.bearer(), **JPEG, "Idempotency-Key": key}
    refused = await world.client.post("/v1/infer/shapes", content=jpeg, headers=headers)

    assert_problem(refused, 422, "invalid_request")
    assert "Idempotency-Key" in refused.json()["detail"]
    assert not world.meter.recent()


async def test_a_trace_of_the_clients_is_that_of_the_event(world: World, jpeg: bytes) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    for traceparent in (f"00-{trace}-00f067aa0ba902b7-01", f"00-{trace}-0000000000000000-01"):
        headers = {**world.bearer(), **JPEG, "traceparent": traceparent}
        assert (await world.client.post("/v1/infer/shapes", content=jpeg, headers=headers)).status_code == 200

    valid, invalid = world.meter.recent()
    assert valid.trace_id == trace
    assert invalid.trace_id == invalid.request_id
    assert len(invalid.trace_id) == 32
