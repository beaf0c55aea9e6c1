from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from serving.adapters.memory.clock import START, ManualClock


def test_time_stands_still_until_it_is_moved() -> None:
    clock = ManualClock()

    assert (clock.monotonic(), clock.now()) == (clock.monotonic(), clock.now()) == (0.0, START)


def test_both_lines_move_together() -> None:
    clock = ManualClock()
    clock.advance(1.5)
    clock.advance(0)

    assert clock.monotonic() == 1.5
    assert clock.now() == START + timedelta(seconds=1.5)


def test_a_jump_of_the_wall_clock_is_not_noticed_by_the_other() -> None:
    clock = ManualClock()
    clock.advance(10)
    there = datetime(2024, 2, 29, tzinfo=UTC)
    clock.set_wall_clock(there)
    clock.advance(1)

    assert clock.monotonic() == 11
    assert clock.now() == there + timedelta(seconds=1)


def test_no_step_back() -> None:
    with pytest.raises(ValueError, match="does not go back"):
        ManualClock().advance(-0.1)
