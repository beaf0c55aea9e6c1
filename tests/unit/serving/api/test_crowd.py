from __future__ import annotations

from contextlib import ExitStack

import pytest
from prometheus_client import CollectorRegistry

from serving.api.crowd import Crowd
from serving.errors import Overloaded
from serving.metrics import Metrics


def present(limit: int, requests: int) -> tuple[Crowd, ExitStack]:
    crowd, stack = Crowd(limit, Metrics(CollectorRegistry())), ExitStack()
    for _ in range(requests):
        stack.enter_context(crowd.joined())
    return crowd, stack


@pytest.mark.parametrize(
    ("priority", "most"),
    [
        (1, 256),  # all the places
        (2, 224),  # an eighth is left to priority 1
        (3, 192),  # and another to priority 2
    ],
)
def test_the_less_urgent_leave_places_to_the_urgent(priority: int, most: int) -> None:
    crowd, stack = present(256, most)
    with stack:
        crowd.refuse_if_full(priority=priority)
        with crowd.joined(), pytest.raises(Overloaded):
            crowd.refuse_if_full(priority=priority)


def test_a_single_place_is_for_everybody() -> None:
    crowd, stack = present(1, 1)
    with stack:
        crowd.refuse_if_full(priority=3)


def test_who_has_left_makes_room() -> None:
    crowd, stack = present(8, 9)
    stack.close()
    with crowd.joined():
        crowd.refuse_if_full()
