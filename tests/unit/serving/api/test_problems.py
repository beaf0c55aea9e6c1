"""Errors as problem details, and when their sender may come back."""

from __future__ import annotations

import math
import re
from functools import partial
from urllib.parse import urljoin, urlsplit

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from serving.api.problems import LONGEST_SPREAD_SECONDS, instance_of, problem_response, retry_after
from serving.errors import (
    Overloaded,
    QuotaExceeded,
    RateLimited,
    TooManyAtOnce,
    Unauthenticated,
    VisiongateError,
)


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
    response = problem_response(error, request_id="r", path="/v1/infer")

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


@given(st.text())
@example("//evil.example/")
@example("///")
@example("a:b")
@example("*")
@example("")
@example("/\ud800")
def test_an_instance_is_a_path_here_whatever_was_asked_for(path: str) -> None:
    instance = instance_of(path)

    parts = urlsplit(urljoin("http://gateway/", instance))
    assert re.fullmatch(r"/(?!/)([A-Za-z0-9\-._~!$&'()*+,;=:@/]|%[0-9A-F]{2})*", instance)
    assert (parts.netloc, parts.query, parts.fragment) == ("gateway", "", "")


@pytest.mark.parametrize("path", ["/v1/infer/shapes", "/v1/infer/a:b@c", "/api/v1/users/team/ada/disable"])
def test_a_usual_path_stays_as_it_is(path: str) -> None:
    assert instance_of(path) == path


def test_a_token_that_is_no_good_is_told_from_none() -> None:
    asked = [
        problem_response(Unauthenticated(), request_id="r", path="/", token_was_sent=sent).headers[
            "WWW-Authenticate"
        ]
        for sent in (False, True)
    ]
    assert asked == ['Bearer realm="visiongate"', 'Bearer realm="visiongate", error="invalid_token"']
