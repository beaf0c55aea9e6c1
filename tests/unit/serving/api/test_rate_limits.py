"""Every answer to a valid key says what is left of its limits, and costs no round trip more than it must."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from serving.adapters.memory.admission import InMemoryAdmission
from serving.adapters.memory.clock import ManualClock
from serving.domain.idempotency import IdempotencyKey
from serving.domain.inference import RenderedAnswer
from serving.domain.limits import LimitState
from serving.domain.tenant import Principal
from serving.errors import AccountsUnavailable, RateLimited, VisiongateError
from serving.ports import Clock, Reservation
from tests.support.gate import Gate
from tests.support.problems import assert_problem
from tests.support.structured_fields import read_list
from tests.support.tiers import make_tier
from tests.support.world import MAX_BODY_BYTES, MAX_REQUESTS, World, running_world, three_anchors

JPEG = {"Content-Type": "image/jpeg"}
SLOW = replace(make_tier(rate=1, burst=3, monthly_quota=50), max_concurrent_requests=2)
"""So slow that no test sees a token come back."""
POLICIES = {"burst", "month", "concurrent"}
MINUTE = 60
DAY = 86_400


class WatchedAdmission(InMemoryAdmission):
    """Counts who asks what is left, and can lose sight of it as a Redis that is down does."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.asked = 0
        self.limits_fail: Exception | None = None
        self.refusal: VisiongateError | None = None

    async def admit(
        self,
        principal: Principal,
        *,
        request_id: str,
        pictures: int,
        lease_seconds: float,
        idempotency: IdempotencyKey | None = None,
    ) -> Reservation | RenderedAnswer:
        if self.refusal is not None:
            raise self.refusal
        return await super().admit(
            principal,
            request_id=request_id,
            pictures=pictures,
            lease_seconds=lease_seconds,
            idempotency=idempotency,
        )

    async def limits(self, principal: Principal) -> LimitState:
        self.asked += 1
        if self.limits_fail:
            raise self.limits_fail
        return await super().limits(principal)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with running_world(SLOW, make_admission=WatchedAdmission) as world:
        yield world


def watched(world: World) -> WatchedAdmission:
    assert isinstance(world.admission, WatchedAdmission)
    return world.admission


def left(response: httpx.Response) -> dict[str, dict[str, Any]]:
    return dict(read_list(response.headers["RateLimit"]))


async def infer(world: World, headers: dict[str, str], picture: bytes) -> httpx.Response:
    return await world.client.post("/v1/infer/shapes", content=picture, headers={**headers, **JPEG})


async def test_an_answer_says_what_its_own_admission_left(world: World, jpeg: bytes) -> None:
    headers = world.bearer()
    first, second = [await infer(world, headers, jpeg) for _ in range(2)]

    assert set(dict(read_list(first.headers["RateLimit-Policy"]))) == POLICIES
    assert [left(each)["burst"] for each in (first, second)] == [{"r": 2, "t": MINUTE}, {"r": 1, "t": MINUTE}]
    assert [left(each)["month"]["r"] for each in (first, second)] == [49, 48]
    assert left(second)["concurrent"] == {"r": 1}
    assert first.headers["RateLimit-Policy"] == second.headers["RateLimit-Policy"]
    assert watched(world).asked == 0


AUTHENTICATED: list[tuple[str, str, dict[str, Any], int]] = [
    ("GET", "/v1/models", {}, 200),
    ("HEAD", "/v1/models", {}, 200),
    ("GET", "/v1/models/shapes", {}, 200),
    ("GET", "/v1/models/nothing", {}, 404),
    ("GET", "/v1/usage?from=yesterday", {}, 422),
    ("GET", "/v1/usage", {}, 503),  # this world's ledger is out of reach
    ("POST", "/v1/infer/nothing", {"content": b"x", "headers": JPEG}, 404),
    ("POST", "/v1/infer/shapes", {"content": b"x"}, 415),
    ("POST", "/v1/infer/shapes", {"json": {}}, 422),
    ("POST", "/v1/infer/shapes", {"json": {"images": ["", "", "", ""]}}, 422),  # more than the burst
    ("POST", "/v1/infer/shapes", {"content": b"x" * (MAX_BODY_BYTES + 1), "headers": JPEG}, 413),
]


@pytest.mark.parametrize(("method", "path", "sent", "status"), AUTHENTICATED)
async def test_so_does_one_that_was_not_admitted(
    world: World, method: str, path: str, sent: dict[str, Any], status: int
) -> None:
    headers = {**world.bearer(), **sent.get("headers", {})}
    response = await world.client.request(method, path, **{**sent, "headers": headers})

    assert response.status_code == status
    assert set(dict(read_list(response.headers["RateLimit-Policy"]))) == POLICIES
    assert left(response)["burst"] == {"r": 3}
    assert watched(world).asked == 1


async def test_a_failure_after_admission_says_what_admission_left(world: World) -> None:
    undecodable = await infer(world, world.bearer(), b"no picture")

    assert_problem(undecodable, 422, "image_undecodable")
    assert left(undecodable)["burst"]["r"] == 2
    assert watched(world).asked == 0


async def test_so_does_a_fault_of_ours(jpeg: bytes) -> None:
    def faulty(batch_nhwc: NDArray[np.uint8]) -> NDArray[np.float32]:
        raise OSError("out of order")

    async with running_world(SLOW, model=faulty) as world:
        failed = await infer(world, world.bearer(), jpeg)

    assert_problem(failed, 500, "internal")
    assert left(failed)["burst"]["r"] == 2


@pytest.mark.parametrize("authorization", [None, "Bearer nonsense", "Basic dTpw"])
async def test_without_a_valid_key_nothing_is_said(world: World, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    answers = [
        await world.client.get("/v1/models", headers=headers),
        await world.client.post("/v1/infer", headers=headers),
        await world.client.get("/v1/models", headers=world.bearer(revoked=True)),
        await world.client.get("/healthz"),
    ]

    assert [answer.status_code for answer in answers] == [401, 401, 401, 200]
    assert not any(name.lower().startswith("ratelimit") for each in answers for name in each.headers)
    assert watched(world).asked == 0


async def test_a_refusal_names_the_limit_and_when_to_come_back(world: World, jpeg: bytes) -> None:
    headers = world.bearer()
    for _ in range(3):
        assert (await infer(world, headers, jpeg)).status_code == 200
    refused = await infer(world, headers, jpeg)

    assert_problem(refused, 429, "rate_limited")
    assert refused.json()["type"] == "https://iana.org/assignments/http-problem-types#quota-exceeded"
    assert refused.json()["violated-policies"] == ["burst"]
    assert left(refused)["burst"] == {"r": 0, "t": MINUTE}
    assert int(refused.headers["Retry-After"]) >= MINUTE
    assert watched(world).asked == 0


async def test_come_back_is_never_before_there_is_more(world: World, jpeg: bytes) -> None:
    """A list may be let through in less time than it takes for one picture more to be said to be left."""
    state = LimitState(0, 1000.5, 47, 86_400.0, 2)
    watched(world).refusal = RateLimited("too fast", retry_after_seconds=1, limits=state)
    refused = await infer(world, world.bearer(), jpeg)

    assert left(refused)["burst"]["t"] == 1001
    assert refused.headers["Retry-After"] == "1001"


async def test_a_key_that_is_busy_is_told_so(jpeg: bytes) -> None:
    gate = Gate(three_anchors)
    async with running_world(replace(SLOW, max_concurrent_requests=1), model=gate.model) as world:
        headers = world.bearer()
        under_way = asyncio.create_task(infer(world, headers, jpeg))
        await gate.reached()
        refused = await infer(world, headers, jpeg)
        another_keys = asyncio.create_task(infer(world, world.bearer(), jpeg))
        gate.opened.set()
        answered = [await under_way, await another_keys]

    assert_problem(refused, 429, "rate_limited")
    assert refused.json()["violated-policies"] == ["concurrent"]
    assert left(refused)["concurrent"] == {"r": 0}
    assert left(refused)["burst"]["r"] == 2
    assert 1 <= int(refused.headers["Retry-After"]) < 5
    assert [answer.status_code for answer in answered] == [200, 200]


async def test_what_is_left_may_be_unknown_but_never_the_policy(world: World, jpeg: bytes) -> None:
    watched(world).limits_fail = AccountsUnavailable("nobody is there")
    listed = await world.client.get("/v1/models", headers=world.bearer())
    answered = await infer(world, world.bearer(), jpeg)

    assert [listed.status_code, answered.status_code] == [200, 200]
    assert "RateLimit-Policy" in listed.headers
    assert "RateLimit" not in listed.headers
    assert left(answered)["burst"]["r"] == 2


async def test_a_fault_of_ours_in_asking_is_a_fault_of_ours(world: World) -> None:
    watched(world).limits_fail = ZeroDivisionError()
    failed = await world.client.get("/v1/models", headers=world.bearer())

    assert_problem(failed, 500, "internal")
    assert "RateLimit-Policy" in failed.headers
    assert watched(world).asked == 1


async def test_nobody_is_asked_twice_who_did_not_answer_once(world: World, jpeg: bytes) -> None:
    watched(world).refusal = AccountsUnavailable("nobody is there")
    refused = await infer(world, world.bearer(), jpeg)

    assert_problem(refused, 503, "backend_unavailable")
    assert "RateLimit-Policy" in refused.headers
    assert "RateLimit" not in refused.headers
    assert watched(world).asked == 0


async def test_a_crowd_is_refused_before_anybody_asks_who_it_is(jpeg: bytes) -> None:
    gate = Gate(three_anchors)
    async with running_world(make_tier(), model=gate.model) as world:
        headers = world.bearer()
        crowd = [asyncio.create_task(infer(world, headers, jpeg)) for _ in range(MAX_REQUESTS)]
        await gate.reached()
        refused = await infer(world, headers, jpeg)
        gate.opened.set()
        await asyncio.gather(*crowd)

    assert_problem(refused, 503, "overloaded")
    assert refused.json()["type"].endswith("#temporary-reduced-capacity")
    assert "Retry-After" in refused.headers
    assert "RateLimit-Policy" not in refused.headers


async def test_a_months_length_is_that_of_the_gateways_clock() -> None:
    clock = ManualClock(datetime(2028, 2, 10, tzinfo=UTC))
    async with running_world(SLOW, clock=clock) as world:
        headers = world.bearer()
        february = await world.client.get("/v1/models", headers=headers)
        clock.advance(20 * DAY)
        march = await world.client.get("/v1/models", headers=headers)

    windows = [dict(read_list(each.headers["RateLimit-Policy"]))["month"]["w"] for each in (february, march)]
    assert windows == [29 * DAY, 31 * DAY]
