from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from serving.domain.tenant import LOWEST_PRIORITY, Principal, Tier

TIER = Tier("pro", 60, 10, None, max_pictures_per_request=4, gpu=True)


@pytest.mark.parametrize(
    ("models", "allowed"),
    [
        (frozenset(), False),  # none at all
        (None, True),  # every one
        (frozenset({"shapes"}), True),
        (frozenset({"Shapes", "shape"}), False),
    ],
)
def test_a_key_may_use_what_it_lists(models: frozenset[str] | None, allowed: bool) -> None:
    assert Principal("key_a", "ada", TIER, models).may_use("shapes") is allowed


@pytest.mark.parametrize(
    ("rate", "burst", "quota", "pictures"),
    [(0, 10, None, 4), (60, 0, None, 4), (60, 10, None, 0), (60, 10, -1, 4), (-60, 10, None, 4)],
)
def test_a_tier_that_admits_nothing_is_refused(
    rate: int, burst: int, quota: int | None, pictures: int
) -> None:
    with pytest.raises(ValueError, match="at least"):
        Tier("odd", rate, burst, quota, max_pictures_per_request=pictures, gpu=False)


@pytest.mark.parametrize("concurrent", [0, -1])
def test_a_tier_that_lets_nobody_in_is_refused(concurrent: int) -> None:
    with pytest.raises(ValueError, match="max_concurrent_requests"):
        Tier("odd", 60, 10, None, 4, gpu=False, max_concurrent_requests=concurrent)


@pytest.mark.parametrize("priority", [-1, 0, LOWEST_PRIORITY + 1])
def test_a_priority_that_no_line_has_is_refused(priority: int) -> None:
    with pytest.raises(ValueError, match="priority is 1 to 3"):
        Tier("odd", 60, 10, None, 4, gpu=False, priority=priority)


@pytest.mark.parametrize(("per_1000", "per_month"), [("0.0000001", "0"), ("0", "20.0000001")])
def test_a_price_that_would_have_to_be_rounded_is_refused(per_1000: str, per_month: str) -> None:
    with pytest.raises(ValueError, match="more than six decimals"):
        replace(TIER, price_per_1000=Decimal(per_1000), price_per_month=Decimal(per_month))


@pytest.mark.parametrize("price", ["-0.01", "NaN", "Infinity"])
def test_a_price_is_a_number_from_zero(price: str) -> None:
    with pytest.raises(ValueError, match="price"):
        Tier("odd", 60, 10, None, 4, gpu=False, price_per_1000=Decimal(price))
