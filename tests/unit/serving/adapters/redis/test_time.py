from __future__ import annotations

from datetime import UTC, datetime, timedelta

from serving.adapters.memory.clock import START, ManualClock
from serving.adapters.redis.time import RedisTime

REDIS = datetime(2026, 11, 30, 23, 59, 59, tzinfo=UTC)


def test_before_redis_was_heard_it_is_the_wall_clock_of_the_start() -> None:
    clock = ManualClock()
    clock.advance(5)
    time = RedisTime(clock)
    clock.set_wall_clock(START - timedelta(days=365))
    clock.advance(1.5)
    assert time.now() == START + timedelta(seconds=6.5)


def test_it_goes_on_from_what_redis_said_whatever_the_wall_clock_says() -> None:
    clock = ManualClock()
    time = RedisTime(clock)
    clock.advance(100)
    time.heard(round(REDIS.timestamp()) * 1_000_000 + 7)
    clock.set_wall_clock(START - timedelta(days=365))
    clock.advance(2)
    assert time.now() == REDIS + timedelta(seconds=2, microseconds=7)


def test_the_last_word_counts() -> None:
    time = RedisTime(ManualClock())
    for seconds in (10, 5):
        time.heard(seconds * 1_000_000)
    assert time.now() == datetime(1970, 1, 1, 0, 0, 5, tzinfo=UTC)
