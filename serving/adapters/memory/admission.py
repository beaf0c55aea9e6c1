"""Rate and monthly quota for one gateway process."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime

from serving.adapters.memory.token_bucket import UNITS_PER_TOKEN, TokenBucket
from serving.domain.idempotency import IdempotencyKey
from serving.domain.inference import RenderedAnswer
from serving.domain.limits import LimitState
from serving.domain.tenant import Principal, Tier
from serving.errors import InvalidRequest, Overloaded, QuotaExceeded, RateLimited
from serving.ports import Clock, Reservation

MAX_BUCKETS = 100_000
MAX_OPEN_RESERVATIONS = 65_536
MONTHS_KEPT = 2  # so that a clock set back over midnight of the first finds its counts again

Month = tuple[int, int]
"""Year and month of the calendar in UTC."""


@dataclass(frozen=True, slots=True)
class _Taken:
    month: Month
    pictures: int


class InMemoryAdmission:
    """`Admission` by a token bucket a key and a count a key and month, exact and never waiting.

    Nothing here suspends, so on one event loop every decision is atomic. Bounds: a bucket that has filled up
    again makes room for a new one; of open reservations the latest are remembered; counts are one number for
    each key seen in a month, and keys are the operator's to issue.
    """

    def __init__(self, clock: Clock, *, max_buckets: int = MAX_BUCKETS) -> None:
        self._clock = clock
        self._max_buckets = max_buckets
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()
        self._used: OrderedDict[Month, dict[str, int]] = OrderedDict()
        self._open: OrderedDict[tuple[str, str], _Taken] = OrderedDict()

    async def admit(
        self,
        principal: Principal,
        *,
        request_id: str,
        pictures: int,
        lease_seconds: float,
        idempotency: IdempotencyKey | None = None,
    ) -> Reservation | RenderedAnswer:
        """Besides the port's errors: InvalidRequest for more pictures than any wait would bring."""
        tier, key_id = principal.tier, principal.key_id
        _refuse_impossible(tier, pictures)
        now = self._clock.now()
        month = (now.year, now.month)
        used = self._used_in(month)
        _refuse_over_quota(tier, used.get(key_id, 0), pictures, now)
        bucket = self._bucket(key_id, tier)
        _refuse_over_rate(tier, bucket, pictures)
        bucket.take(pictures)
        used[key_id] = used.get(key_id, 0) + pictures
        self._remember((key_id, request_id), _Taken(month, pictures))
        return Reservation(request_id, key_id, pictures, now, await self.limits(principal), idempotency)

    async def limits(self, principal: Principal) -> LimitState:
        tier, now = principal.tier, self._clock.now()
        bucket = self._bucket(principal.key_id, tier)
        used = self._used_in((now.year, now.month)).get(principal.key_id, 0)
        return LimitState(
            tokens=bucket.level_units // UNITS_PER_TOKEN,
            next_token_seconds=0.0,
            quota=None if tier.monthly_quota is None else tier.monthly_quota - used,
            month_ends_seconds=(_next_month(now) - now).total_seconds(),
            concurrent=None,
        )

    async def give_back(self, reservation: Reservation) -> None:
        taken = self._open.pop((reservation.key_id, reservation.request_id), None)
        if taken is None:
            return
        if bucket := self._buckets.get(reservation.key_id):
            bucket.refill(self._now_us())
            bucket.give_back(taken.pictures)
        if used := self._used.get(taken.month):
            used[reservation.key_id] -= taken.pictures

    def _now_us(self) -> int:
        return round(self._clock.monotonic() * 1_000_000)

    def _used_in(self, month: Month) -> dict[str, int]:
        used = self._used.setdefault(month, {})
        self._used.move_to_end(month)
        if len(self._used) > MONTHS_KEPT:
            self._used.popitem(last=False)
        return used

    def _bucket(self, key_id: str, tier: Tier) -> TokenBucket:
        now_us = self._now_us()
        if key_id not in self._buckets:
            self._make_room(now_us)
            self._buckets[key_id] = TokenBucket.full(tier, now_us)
        bucket = self._buckets[key_id]
        self._buckets.move_to_end(key_id)
        bucket.refill(now_us)
        bucket.follow(tier)
        return bucket

    def _make_room(self, now_us: int) -> None:
        """Only a full bucket may go: a new one in its place would not give a single token more."""
        if len(self._buckets) < self._max_buckets:
            return
        longest_idle = next(iter(self._buckets.values()))
        longest_idle.refill(now_us)
        if wait_us := longest_idle.wait_until_full_us():
            raise Overloaded("Too many API keys are in use at once.", retry_after_seconds=wait_us / 1_000_000)
        self._buckets.popitem(last=False)

    def _remember(self, request: tuple[str, str], taken: _Taken) -> None:
        self._open[request] = taken
        self._open.move_to_end(request)
        if len(self._open) > MAX_OPEN_RESERVATIONS:
            self._open.popitem(last=False)


def _refuse_impossible(tier: Tier, pictures: int) -> None:
    if pictures < 1:
        raise ValueError(f"a request has at least one picture, not {pictures}")
    if pictures > tier.burst:
        raise InvalidRequest(
            f"{pictures} pictures in one request are more than this key's burst of {tier.burst}."
        )


def _refuse_over_quota(tier: Tier, used: int, pictures: int, now: datetime) -> None:
    if tier.monthly_quota is None or used + pictures <= tier.monthly_quota:
        return
    left = tier.monthly_quota - used
    raise QuotaExceeded(
        f"{max(0, left)} of this month's {tier.monthly_quota} pictures are left; {pictures} were asked for.",
        retry_after_seconds=(_next_month(now) - now).total_seconds(),
    )


def _refuse_over_rate(tier: Tier, bucket: TokenBucket, pictures: int) -> None:
    if wait_us := bucket.wait_us(pictures):
        raise RateLimited(
            f"This key may send {tier.rate_limit_per_minute} pictures a minute and {tier.burst} at once.",
            retry_after_seconds=wait_us / 1_000_000,
        )


def _next_month(now: datetime) -> datetime:
    year, month = (now.year + 1, 1) if now.month == 12 else (now.year, now.month + 1)
    return datetime(year, month, 1, tzinfo=now.tzinfo)
