from __future__ import annotations

from datetime import UTC

from serving.clock import SystemClock


def test_the_wall_clock_is_in_utc_and_the_other_never_goes_back() -> None:
    clock = SystemClock()
    moments = [clock.monotonic() for _ in range(1000)]

    assert clock.now().tzinfo is UTC
    assert moments == sorted(moments)
