"""A clock that moves only when it is told to."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

START = datetime(2026, 1, 15, 12, 0, tzinfo=UTC)


class ManualClock:
    """Twin of the `Clock` port: both lines stand still until `advance` moves them together."""

    def __init__(self, start: datetime = START) -> None:
        self._start = start
        self._elapsed_seconds = 0.0
        self._wall_offset = timedelta()

    def monotonic(self) -> float:
        return self._elapsed_seconds

    def now(self) -> datetime:
        return self._start + self._wall_offset + timedelta(seconds=self._elapsed_seconds)

    def advance(self, seconds: float) -> None:
        """Raises ValueError for a step back, which no monotonic clock makes."""
        if seconds < 0:
            raise ValueError(f"a monotonic clock does not go back {-seconds} s")
        self._elapsed_seconds += seconds

    def set_wall_clock(self, now: datetime) -> None:
        """Jump the wall clock alone, as an operator or NTP does; `monotonic` does not notice."""
        self._wall_offset += now - self.now()
