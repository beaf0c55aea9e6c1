from __future__ import annotations

import pytest

from serving.adapters.memory.token_bucket import UNITS_PER_TOKEN, TokenBucket
from serving.domain.tenant import Tier

SECOND_US = 1_000_000


def bucket(*, rate: int = 60, burst: int = 10, taken: int = 0) -> TokenBucket:
    made = TokenBucket.full(tier(rate, burst), now_us=0)
    made.take(taken)
    return made


def tier(rate: int, burst: int) -> Tier:
    return Tier("test", rate, burst, None, max_pictures_per_request=1, gpu=False)


@pytest.mark.parametrize(
    ("taken", "wanted", "wait_us"),
    [
        (0, 0, 0),
        (0, 10, 0),  # full
        (10, 1, SECOND_US),  # empty: 60 a minute is one a second
        (10, 10, 10 * SECOND_US),
        (7, 3, 0),
        (7, 4, SECOND_US),
    ],
)
def test_waiting_is_for_the_missing_tokens(taken: int, wanted: int, wait_us: int) -> None:
    assert bucket(taken=taken).wait_us(wanted) == wait_us


def test_a_wait_is_rounded_up_to_the_microsecond() -> None:
    assert bucket(rate=7, taken=10).wait_us(1) == 8_571_429  # 60 s / 7 = 8.571 428 57… s


def test_many_small_refills_are_one_large_one() -> None:
    often, once = bucket(rate=7, taken=10), bucket(rate=7, taken=10)
    for now_us in range(0, 7_000_001, 7):
        often.refill(now_us)
    once.refill(7_000_000)

    assert often == once


def test_a_bucket_overflows_neither_by_time_nor_by_what_comes_back() -> None:
    full = bucket(taken=1)
    full.refill(10**12)
    full.give_back(5)

    assert full.level_units == 10 * UNITS_PER_TOKEN
    assert full.wait_until_full_us() == 0


def test_new_terms_count_from_now_on() -> None:
    changed = bucket(rate=60, burst=10, taken=10)
    changed.refill(2 * SECOND_US)
    changed.follow(tier(rate=600, burst=3))
    changed.refill(2 * SECOND_US + 50_000)

    assert changed.level_units == 2 * UNITS_PER_TOKEN + UNITS_PER_TOKEN // 2
    changed.refill(10 * SECOND_US)
    assert changed.level_units == 3 * UNITS_PER_TOKEN
