from __future__ import annotations

import pytest

from serving.adapters.limits import UNITS_PER_TOKEN
from serving.adapters.memory.token_bucket import TokenBucket
from serving.domain.tenant import Tier

SECOND_US = 1_000_000


def tier(rate: int = 60, burst: int = 10) -> Tier:
    return Tier("test", rate, burst, None, max_pictures_per_request=1, gpu=False)


def bucket(*, taken: int = 0) -> TokenBucket:
    made = TokenBucket.full(tier(), now_us=0)
    made.take(taken, tier(), now_us=0)
    return made


@pytest.mark.parametrize(
    ("taken", "wait_us"), [(0, 0), (1, SECOND_US), (10, 10 * SECOND_US)], ids=["full", "one", "empty"]
)
def test_it_is_full_when_what_was_taken_is_refilled(taken: int, wait_us: int) -> None:
    assert bucket(taken=taken).wait_until_full_us(tier(), now_us=0) == wait_us


def test_a_wait_is_rounded_up_to_the_microsecond() -> None:
    assert (
        bucket(taken=1).wait_until_full_us(tier(rate=7), now_us=0) == 8_571_429
    )  # 60 s / 7 = 8.571 428 57… s


def test_many_small_refills_are_one_large_one() -> None:
    often, once = bucket(taken=10), bucket(taken=10)
    for now_us in range(0, 7_000_001, 7_000):
        often.take(0, tier(rate=7), now_us)
    once.take(0, tier(rate=7), 7_000_000)

    assert often == once


def test_a_bucket_overflows_neither_by_time_nor_by_what_comes_back() -> None:
    full = bucket(taken=1)
    full.give_back(5)

    assert full.level(tier(), now_us=0) == 10 * UNITS_PER_TOKEN
    assert full.level(tier(), now_us=10**12) == 10 * UNITS_PER_TOKEN


def test_time_counts_by_the_terms_of_who_asks() -> None:
    empty = bucket(taken=10)

    assert empty.level(tier(rate=60), now_us=2 * SECOND_US) == 2 * UNITS_PER_TOKEN
    assert empty.level(tier(rate=600), now_us=50_000) == UNITS_PER_TOKEN // 2
    assert empty.level(tier(rate=600, burst=3), now_us=10 * SECOND_US) == 3 * UNITS_PER_TOKEN
