"""Redis' clock, as far as it can be told without asking: the one that months are counted by."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from serving.ports import Clock

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class RedisTime:
    """Goes on by the machine's monotonic clock, so that whoever sets the wall clock meanwhile moves nothing.

    Until Redis was heard, it is the wall clock of the start.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began_at = clock.now() - timedelta(seconds=clock.monotonic())

    def heard(self, now_microseconds: int) -> None:
        """Redis has just said that it is so many microseconds after 1970."""
        now = _EPOCH + timedelta(microseconds=now_microseconds)
        self._began_at = now - timedelta(seconds=self._clock.monotonic())

    def now(self) -> datetime:
        return self._began_at + timedelta(seconds=self._clock.monotonic())
