"""Refusals that need a world of their own: a used-up quota, and a fault on our side."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.api.problems import LONGEST_SPREAD_SECONDS
from serving.domain.tenant import Tier
from tests.support.problems import assert_problem
from tests.support.tiers import make_tier
from tests.support.world import running_world, three_anchors

JPEG = {"Content-Type": "image/jpeg"}
LONGEST_MONTH_SECONDS = 31 * 86_400


async def test_a_quota_is_for_the_month_and_only_answered_pictures_count(jpeg: bytes) -> None:
    async with running_world(make_tier(monthly_quota=1)) as world:
        headers = {**world.bearer(models=["shapes"]), **JPEG}
        failed = await world.client.post("/v1/infer", content=b"text", headers=headers)
        answered = await world.client.post("/v1/infer", content=jpeg, headers=headers)
        refused = await world.client.post("/v1/infer", content=jpeg, headers=headers)

    assert (failed.status_code, answered.status_code) == (422, 200)
    assert_problem(refused, 429, "quota_exceeded")
    assert refused.json()["violated-policies"] == ["month"]
    assert 1 <= int(refused.headers["Retry-After"]) <= LONGEST_MONTH_SECONDS + LONGEST_SPREAD_SECONDS
    assert [event.pictures for event in world.meter.recent()] == [1]


async def test_a_fault_of_ours_is_told_to_the_log_and_not_to_the_client(
    tier: Tier, jpeg: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    faults = [OSError("cannot open /srv/secret/model at 10.0.0.7")]

    def faulty_once(batch_nhwc: NDArray[np.uint8]) -> NDArray[np.float32]:
        if faults:
            raise faults.pop()
        return three_anchors(batch_nhwc)

    async with running_world(tier, model=faulty_once) as world:
        headers = {**world.bearer(models=["shapes"]), **JPEG}
        failed = await world.client.post("/v1/infer", content=jpeg, headers=headers)
        answered = await world.client.post("/v1/infer", content=jpeg, headers=headers)

    assert_problem(failed, 500, "internal")
    assert not any(word in failed.text for word in ("secret", "10.0.0.7", "OSError", "Traceback"))
    errors = [each for each in caplog.records if each.levelno >= logging.ERROR]
    told = [logging.Formatter().format(each) for each in errors]
    assert sum("OSError: cannot open /srv/secret/model" in text for text in told) == 1
    ids = [vars(each).get("facts", {}).get("request_id") for each in errors]
    assert ids.count(failed.json()["request_id"]) == 1
    assert answered.status_code == 200
    assert [event.request_id for event in world.meter.recent()] == [answered.json()["request_id"]]
