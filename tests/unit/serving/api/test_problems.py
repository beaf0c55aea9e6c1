"""Errors as problem details, and when their sender may come back."""

from __future__ import annotations

import math
from functools import partial

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.api.problems import LONGEST_SPREAD_SECONDS, problem_response, retry_after
from serving.errors import Overloaded, QuotaExceeded, RateLimited, TooManyAtOnce, VisiongateError


@pytest.mark.parametrize(
    ("error", "kind", "policies"),
    [
        (RateLimited("", retry_after_seconds=1), "quota-exceeded", ["burst"]),
        (TooManyAtOnce("", retry_after_seconds=1), "quota-exceeded", ["concurrent"]),
        (QuotaExceeded("", retry_after_seconds=1), "quota-exceeded", ["month"]),
        (Overloaded(), "temporary-reduced-capacity", None),
    ],
)
def test_refusals_have_the_types_of_the_draft(
    error: VisiongateError, kind: str, policies: list[str] | None
) -> None:
    response = problem_response(error, request_id="r", instance="/v1/infer")

    problem = orjson.loads(response.body)
    assert problem["type"] == f"https://iana.org/assignments/http-problem-types#{kind}"
    assert problem.get("violated-policies") == policies
    assert int(response.headers["Retry-After"]) >= 1


@given(st.floats(0, 32 * 86_400), st.floats(0, 1, exclude_max=True))
def test_nobody_is_called_back_too_early_or_much_too_late(seconds: float, spread: float) -> None:
    told = int(retry_after(seconds, spread=lambda: spread))
    assert max(1, seconds) <= told <= math.ceil(seconds + min(1 + seconds / 10, LONGEST_SPREAD_SECONDS))


def test_a_crowd_that_waits_for_the_same_month_is_spread_over_a_minute() -> None:
    told = {int(retry_after(86_400, spread=partial(float, share / 60))) for share in range(60)}
    assert told == set(range(86_400, 86_460))
