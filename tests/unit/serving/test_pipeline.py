"""The journey's promises about money: what is refused, fails or is abandoned costs nothing."""

from __future__ import annotations

import asyncio
import threading
from base64 import b64encode
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import httpx
import numpy as np
import orjson
import pytest
from numpy.typing import NDArray

from serving import pipeline
from serving.domain.contract import ModelContract
from serving.domain.tenant import Tier
from serving.ports import InferenceOutput
from tests.support.contracts import metadata
from tests.support.tiers import make_tier
from tests.support.world import INPUT_SIDE, World, encode, running_world, three_anchors

JPEG = {"Content-Type": "image/jpeg"}
WHITE = encode(np.full((64, 64, 3), 255, np.uint8))
GREY = encode(np.full((64, 64, 3), 128, np.uint8))


@pytest.fixture
def tier() -> Tier:
    return make_tier(rate=1, burst=2, max_pictures=2)


def version(number: str, name: str = "shapes") -> ModelContract:
    raw = metadata(name, side=INPUT_SIDE, anchors=3, classes=["cat", "dog"])
    raw["model_info"]["version"] = number
    return ModelContract.parse(orjson.dumps(raw))


@contextmanager
def looked_after(world: World) -> Iterator[None]:
    run = asyncio.create_task(world.lanes.run())
    try:
        yield
    finally:
        run.cancel()


async def test_a_failed_request_gives_its_tokens_back(tier: Tier) -> None:
    async with running_world(tier) as world:
        headers = {**world.bearer(models=["shapes"]), **JPEG}
        bad = [
            (await world.client.post("/v1/infer", content=b"text", headers=headers)).status_code
            for _ in range(5)
        ]
        good = [
            (await world.client.post("/v1/infer", content=WHITE, headers=headers)).status_code
            for _ in range(3)
        ]

    assert bad == [422] * 5
    assert good == [200, 200, 429]


async def test_a_refusal_says_when_to_come_back_in_the_standard_words(tier: Tier) -> None:
    async with running_world(tier) as world:
        headers = {**world.bearer(models=["shapes"]), **JPEG}
        for _ in range(3):
            refused = await world.client.post("/v1/infer", content=WHITE, headers=headers)

    problem = refused.json()
    assert (refused.status_code, problem["code"]) == (429, "rate_limited")
    assert problem["type"] == "https://iana.org/assignments/http-problem-types#quota-exceeded"
    assert 55 <= int(refused.headers["Retry-After"]) <= 67  # with its spread
    assert world.meter.totals(world.meter.recent()[0].key_id, "shapes").pictures == 2


async def test_a_list_takes_all_its_tokens_or_none(tier: Tier) -> None:
    async with running_world(tier) as world:
        headers = world.bearer(models=["shapes"])
        picture = b64encode(WHITE).decode()
        one, two = {"images": [picture]}, {"images": [picture, picture]}
        statuses = [
            (await world.client.post("/v1/infer", json=body, headers=headers)).status_code
            for body in (one, two, one, one)
        ]

    assert statuses == [200, 429, 200, 429]


async def test_the_unusable_pictures_of_a_list_cost_nothing(tier: Tier) -> None:
    async with running_world(tier) as world:
        headers = world.bearer(models=["shapes"])
        half = {"images": [b64encode(WHITE).decode(), "bad"]}
        statuses = [
            (await world.client.post("/v1/infer", json=half, headers=headers)).status_code for _ in range(2)
        ]

    assert statuses == [200, 429]  # one of two tokens is left, where a list of two takes both
    assert [event.pictures for event in world.meter.recent()] == [1]


async def test_a_client_that_leaves_is_not_billed_and_keeps_its_tokens(tier: Tier) -> None:
    reached, gate = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def slow(batch_nhwc: NDArray[np.uint8]) -> NDArray[np.float32]:
        loop.call_soon_threadsafe(reached.set)
        gate.wait(10)
        return three_anchors(batch_nhwc)

    async with running_world(tier, model=slow) as world:
        headers = {**world.bearer(models=["shapes"]), **JPEG}
        leaving = asyncio.create_task(world.client.post("/v1/infer", content=WHITE, headers=headers))
        await reached.wait()
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        gate.set()
        statuses = [
            (await world.client.post("/v1/infer", content=WHITE, headers=headers)).status_code
            for _ in range(3)
        ]
        settled = len(world.meter.recent())

    assert statuses == [200, 200, 429]
    assert settled == 2


async def test_the_deadline_is_kept_while_the_server_dawdles(tier: Tier) -> None:
    gate = threading.Event()

    def stuck(batch_nhwc: NDArray[np.uint8]) -> NDArray[np.float32]:
        gate.wait(10)
        return three_anchors(batch_nhwc)

    async with running_world(tier, model=stuck, request_timeout_seconds=0.2) as world:
        response = await world.client.post(
            "/v1/infer", content=WHITE, headers={**world.bearer(models=["shapes"]), **JPEG}
        )
        gate.set()

    assert (response.status_code, response.json()["code"]) == (504, "timeout")
    assert not world.meter.recent()


async def test_a_request_whose_version_is_gone_is_answered_by_the_next_and_billed_once(tier: Tier) -> None:
    """Another process published, and had it loaded, before this one looked."""
    async with running_world(tier) as world:
        headers = {**world.bearer(models=["shapes"]), **JPEG}
        world.catalog.put(version("2"))
        world.backend.loaded["shapes"] = {"2"}
        with looked_after(world):
            responses = [
                await world.client.post("/v1/infer", content=WHITE, headers=headers) for _ in range(3)
            ]

    assert [response.status_code for response in responses] == [200, 200, 429]
    assert [response.json()["model_version"] for response in responses[:2]] == ["2", "2"]
    assert [event.model_version for event in world.meter.recent()] == ["2", "2"]


async def test_a_request_outlives_two_versions_in_a_row(tier: Tier) -> None:
    """Each is gone when the request comes to it."""
    published = iter("23")

    async with running_world(tier) as world:
        infer = world.backend.infer

        async def publishing_meanwhile(
            contract: ModelContract, batch_nhwc: NDArray[np.uint8], *, deadline: float, priority: int
        ) -> InferenceOutput:
            if (number := next(published, None)) is not None:
                world.catalog.put(version(number))
                world.backend.loaded["shapes"] = {number}
            return await infer(contract, batch_nhwc, deadline=deadline, priority=priority)

        world.backend.infer = publishing_meanwhile  # type: ignore[method-assign]  # what others do meanwhile
        with looked_after(world):
            response = await world.client.post(
                "/v1/infer", content=WHITE, headers={**world.bearer(models=["shapes"]), **JPEG}
            )

    assert (response.status_code, response.json()["model_version"]) == (200, "3")
    assert len(world.meter.recent()) == 1


@pytest.mark.parametrize("request_timeout_seconds", [0.2, 10])
async def test_a_version_that_is_gone_for_good_is_unavailable_and_costs_nothing(
    tier: Tier, monkeypatch: pytest.MonkeyPatch, request_timeout_seconds: float
) -> None:
    monkeypatch.setattr(pipeline, "SWAP_SECONDS", min(pipeline.SWAP_SECONDS, 2 / request_timeout_seconds))
    async with running_world(tier, request_timeout_seconds=request_timeout_seconds) as world:
        headers = {**world.bearer(models=["shapes"]), **JPEG}
        world.backend.loaded["shapes"].clear()
        async with asyncio.timeout(3):
            gone = [
                (await world.client.post("/v1/infer", content=WHITE, headers=headers)).status_code
                for _ in range(3)
            ]
        world.backend.loaded["shapes"].add("1")
        back = await world.client.post("/v1/infer", content=WHITE, headers=headers)

    assert gone == [503] * 3
    assert back.status_code == 200
    assert len(world.meter.recent()) == 1


async def test_a_request_without_a_model_means_the_same_while_models_come(tier: Tier) -> None:
    async with running_world(tier, contracts=[version("1", "dogs")]) as world:
        world.backend.unavailable.add("cats")
        world.catalog.put(version("1", "cats"))
        await world.lanes.refresh()
        await world.lanes.settle()

        async def ask(models: list[str] | None) -> tuple[int, str]:
            headers = {**world.bearer(models=models), **JPEG}
            response = await world.client.post("/v1/infer", content=WHITE, headers=headers)
            return response.status_code, response.json().get("code", response.json().get("model"))

        answers = {
            str(models): await ask(models)
            for models in (["cats", "dogs"], None, ["cats"], ["dogs"], ["dogs", "gone"], ["gone"])
        }

    assert answers == {
        "['cats', 'dogs']": (404, "model_not_found"),
        "None": (404, "model_not_found"),
        "['cats']": (503, "backend_unavailable"),
        "['dogs']": (200, "dogs"),
        "['dogs', 'gone']": (200, "dogs"),
        "['gone']": (404, "model_not_found"),
    }


async def unpublish(world: World) -> None:
    del world.catalog.models["shapes"]
    await world.lanes.refresh()


async def let_it_load_for_long(world: World) -> None:
    await unpublish(world)
    world.backend.unavailable.add("shapes")
    world.catalog.put(version("1"))
    await world.lanes.refresh()
    await world.lanes.settle()


async def publish_without_dogs(world: World) -> None:
    raw = metadata("shapes", side=INPUT_SIDE, anchors=3, classes=["cat", "cow"])
    raw["model_info"]["version"] = "2"
    world.catalog.put(ModelContract.parse(orjson.dumps(raw)))
    await world.lanes.refresh()
    await world.lanes.settle()


@pytest.mark.parametrize(
    ("happens", "refused_with"),
    [
        (unpublish, (404, "model_not_found")),
        (let_it_load_for_long, (503, "backend_unavailable")),
        (publish_without_dogs, (422, "invalid_request")),
    ],
)
async def test_what_was_billed_is_answered_again_even_if_it_could_not_be_asked_now(
    tier: Tier, happens: Callable[[World], Awaitable[None]], refused_with: tuple[int, str]
) -> None:
    async with running_world(tier) as world:
        headers = {**world.bearer(models=["shapes"]), **JPEG}

        async def ask(key: str | None, *, picture: bytes = WHITE) -> httpx.Response:
            named = {} if key is None else {"Idempotency-Key": key}
            return await world.client.post(
                "/v1/infer", content=picture, params={"classes": "dog"}, headers={**headers, **named}
            )

        first = await ask("a")
        await happens(world)
        again = await ask("a")
        new, unnamed, reused = await ask("b"), await ask(None), await ask("a", picture=GREY)

    assert (first.status_code, again.status_code) == (200, 200)
    assert (again.content, again.headers["Idempotency-Replayed"]) == (first.content, "true")
    assert again.headers["RateLimit"].startswith('"burst";r=1')
    for refused in (new, unnamed):
        assert (refused.status_code, refused.json()["code"]) == refused_with
    assert (reused.status_code, reused.json()["code"]) == (422, "idempotency_key_reused")
    assert len(world.meter.recent()) == 1


async def test_nobody_looks_for_an_answer_twice_where_the_request_can_be_asked(
    tier: Tier, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nobody_asks(*_: object) -> None:
        pytest.fail("admission has looked for it already")

    async with running_world(tier) as world:
        monkeypatch.setattr(world.admission, "answered", nobody_asks)
        headers = {**world.bearer(models=["shapes"]), **JPEG, "Idempotency-Key": "a"}
        statuses = [
            (await world.client.post("/v1/infer", content=content, headers=headers)).status_code
            for content in (b"text", WHITE, WHITE)
        ]

    assert statuses == [422, 200, 200]
