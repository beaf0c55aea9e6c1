"""What is known of a drift between two bounds, and of several looks at it."""

from __future__ import annotations

import pytest

from serving.metering.drift import Drift


def between(low: int, high: int, *, count: int = 10) -> Drift:
    return Drift(count, ledger=10, on_the_way=0, leased=0, low=low, high=high)


@pytest.mark.parametrize(
    ("low", "high", "certain", "in_doubt"),
    [
        (0, 0, 0, False),
        (3, 3, 3, True),
        (-3, -3, -3, True),
        (2, 5, 2, True),  # too high by two at the least
        (-5, -2, -2, True),
        (-2, 3, 0, True),  # what the ledger gained meanwhile hides it, or there is none
        (0, 4, 0, True),
        (-4, 0, 0, True),
    ],
)
def test_certain_is_what_lies_outside_of_the_bounds(
    low: int, high: int, certain: int, in_doubt: bool
) -> None:
    drift = between(low, high)

    assert (drift.certain, drift.is_in_doubt, drift.is_exact) == (certain, in_doubt, low == high)


@pytest.mark.parametrize(
    ("earlier", "later", "known"),
    [
        ((0, 0), (0, 0), (0, 0)),
        ((-2, 3), (-1, 5), (-1, 3)),  # each look has a better bound
        ((-2, 3), (3, 4), (3, 3)),  # they meet
        ((-2, 3), (4, 5), (4, 5)),  # it was changed in between: the earlier look is past
    ],
)
def test_looks_narrow_what_is_known(
    earlier: tuple[int, int], later: tuple[int, int], known: tuple[int, int]
) -> None:
    narrowed = between(*later, count=12).narrowed(between(*earlier))

    assert (narrowed.low, narrowed.high, narrowed.count) == (*known, 12)
