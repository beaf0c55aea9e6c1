"""Rate, monthly quota and concurrency for one gateway process."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from serving.adapters import limits
from serving.adapters.memory.answers import MAX_BYTES, KeptAnswers
from serving.adapters.memory.token_bucket import TokenBucket
from serving.domain.idempotency import IdempotencyKey
from serving.domain.inference import RenderedAnswer
from serving.domain.limits import LimitState
from serving.domain.month import Month
from serving.domain.tenant import Principal, Tier
from serving.domain.usage import UsageEvent
from serving.errors import Overloaded
from serving.ports import Clock, Reservation

MAX_ACCOUNTS = 100_000
MONTHS_KEPT = 2  # so that a clock set back over midnight of the first finds its counts again


@dataclass(frozen=True, slots=True)
class _Lease:
    pictures: int
    tokens: int
    month: Month
    ends_at_us: int


@dataclass(slots=True)
class _Account:
    """tier: by which it was last asked for. leases: by request id, of the requests under way."""

    bucket: TokenBucket
    tier: Tier
    leases: dict[str, _Lease] = field(default_factory=dict)


class InMemoryAdmission:
    """`Admission` by a token bucket and leases a key, and a count a key and month; exact and never waiting.

    Nothing here suspends, so on one event loop every decision is atomic. What refills and lapses does so by
    the clock's `monotonic`; the month is that of `admitted_at`. Tokens of a lapsed lease stay spent: nobody
    knows whether its request ran. A request that is admitted again gives back what it had reserved, but not
    its tokens.

    Bounds: an account with a full bucket and no leases makes room for a new one; counts are one number for
    each key seen in a month, and keys are the operator's to issue.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        picture_costs: Callable[[], int] = lambda: 1,
        admitted_at: Callable[[], datetime] | None = None,
        max_accounts: int = MAX_ACCOUNTS,
        kept_answers_bytes: int = MAX_BYTES,
    ) -> None:
        """picture_costs: tokens for each picture, at least 1: the number of gateways where each is to admit
        its share. A full bucket is enough for any request, and owes what that costs beyond it. admitted_at:
        what time it is, for months and reservations; None is the clock's. kept_answers_bytes: of all keys.
        """
        self._clock = clock
        self._picture_costs = picture_costs
        self._admitted_at = admitted_at or clock.now
        self._max_accounts = max_accounts
        self._accounts: OrderedDict[str, _Account] = OrderedDict()
        self._used: OrderedDict[Month, Counter[str]] = OrderedDict()
        self._answers = KeptAnswers(max_bytes=kept_answers_bytes)

    async def admit(
        self,
        principal: Principal,
        *,
        request_id: str,
        pictures: int,
        lease_seconds: float,
        idempotency: IdempotencyKey | None = None,
    ) -> Reservation | RenderedAnswer:
        """Besides the port's errors, Overloaded where more keys are in use than there is room for."""
        tier, key_id, now_us = principal.tier, principal.key_id, self._now_us()
        limits.refuse_impossible(tier, pictures)
        if idempotency and (answer := self._answers.find(key_id, idempotency, now_us)):
            return answer
        account = self._account(principal)
        self._end(key_id, account, request_id)
        now, tokens = self._admitted_at(), pictures * self._picture_costs()
        self._refuse_over_limits(principal, account, pictures, tokens, now)

        lease = _Lease(pictures, tokens, Month.of(now), now_us + round(lease_seconds * limits.MICROSECONDS))
        account.bucket.take(tokens, tier, now_us)
        account.leases[request_id] = lease
        self._used_in(lease.month)[key_id] += pictures
        if idempotency:
            self._answers.claim(key_id, idempotency, request_id, lease.ends_at_us)
        return Reservation(
            request_id, key_id, pictures, now, self._state(tier, key_id, account, now), idempotency
        )

    async def answered(self, principal: Principal, idempotency: IdempotencyKey) -> RenderedAnswer | None:
        return self._answers.find(principal.key_id, idempotency, self._now_us())

    async def limits(self, principal: Principal) -> LimitState:
        account = self._account(principal)
        return self._state(principal.tier, principal.key_id, account, self._admitted_at())

    async def give_back(self, reservation: Reservation) -> None:
        key_id, request_id = reservation.key_id, reservation.request_id
        if reservation.idempotency:
            self._answers.release(key_id, reservation.idempotency, request_id)
        if (account := self._swept(key_id)) and (lease := account.leases.get(request_id)):
            account.bucket.give_back(lease.tokens)
            self._end(key_id, account, request_id)

    def settle(self, event: UsageEvent, reservation: Reservation, answer: RenderedAnswer) -> None:
        """End a reservation as billed, for `InMemoryMeter`, whose errors it raises."""
        key_id, request_id = event.key_id, event.request_id
        if reservation.idempotency:
            self._answers.keep(key_id, reservation.idempotency, request_id, answer, self._now_us())
        if (account := self._swept(key_id)) and (lease := account.leases.get(request_id)):
            spare = lease.pictures - event.pictures
            account.bucket.give_back(lease.tokens * spare // lease.pictures)
            self._end(key_id, account, request_id)
        self._used_in(event.month)[key_id] += event.pictures

    def resume(self, principal: Principal, tokens: int | None, *, used: int | None = None) -> None:
        """Go on from what is known of a key from elsewhere: its bucket, and pictures charged this month."""
        if tokens is not None:
            level_units = min(principal.tier.burst, max(0, tokens)) * limits.UNITS_PER_TOKEN
            self._account(principal).bucket = TokenBucket(level_units, self._now_us())
        if used is not None:
            self._used_in(Month.of(self._admitted_at()))[principal.key_id] = used

    def charged(self, key_id: str, month: Month) -> int:
        """Pictures of this month's quota that are billed or reserved."""
        return self._used_in(month)[key_id]

    def _refuse_over_limits(
        self, principal: Principal, account: _Account, pictures: int, tokens: int, now: datetime
    ) -> None:
        tier = principal.tier
        state = self._state(tier, principal.key_id, account, now)
        if state.quota is not None and pictures > state.quota:
            raise limits.over_quota(tier, pictures, state)
        missing_units = min(tier.burst, tokens) * limits.UNITS_PER_TOKEN
        missing_units -= account.bucket.level(tier, self._now_us())
        if missing_units > 0:
            raise limits.over_rate(tier, missing_units, state)
        if state.concurrent == 0:
            raise limits.over_concurrency(tier, state)

    def _state(self, tier: Tier, key_id: str, account: _Account, now: datetime) -> LimitState:
        return limits.limit_state(
            tier,
            level_units=account.bucket.level(tier, self._now_us()),
            used=self._used_in(Month.of(now))[key_id],
            leases=len(account.leases),
            now=now,
            units_per_picture=min(tier.burst, self._picture_costs()) * limits.UNITS_PER_TOKEN,
        )

    def _now_us(self) -> int:
        return round(self._clock.monotonic() * limits.MICROSECONDS)

    def _used_in(self, month: Month) -> Counter[str]:
        used = self._used.setdefault(month, Counter())
        self._used.move_to_end(month)
        if len(self._used) > MONTHS_KEPT:
            self._used.popitem(last=False)
        return used

    def _account(self, principal: Principal) -> _Account:
        """Without leases that have lapsed."""
        key_id, tier, now_us = principal.key_id, principal.tier, self._now_us()
        if key_id not in self._accounts:
            self._make_room(now_us)
            self._accounts[key_id] = _Account(TokenBucket.full(tier, now_us), tier)
        account = self._accounts[key_id]
        self._accounts.move_to_end(key_id)
        account.tier = tier
        self._sweep(key_id, account, now_us)
        return account

    def _make_room(self, now_us: int) -> None:
        """Only a full bucket without leases may go: a new one in its place would not give a token more."""
        if len(self._accounts) < self._max_accounts:
            return
        key_id, longest_idle = next(iter(self._accounts.items()))
        self._sweep(key_id, longest_idle, now_us)
        lapse_us = max((lease.ends_at_us - now_us for lease in longest_idle.leases.values()), default=0)
        if wait_us := max(lapse_us, longest_idle.bucket.wait_until_full_us(longest_idle.tier, now_us)):
            raise Overloaded(
                "Too many API keys are in use at once.", retry_after_seconds=wait_us / limits.MICROSECONDS
            )
        self._accounts.popitem(last=False)

    def _sweep(self, key_id: str, account: _Account, now_us: int) -> None:
        for lapsed in [name for name, lease in account.leases.items() if lease.ends_at_us <= now_us]:
            self._end(key_id, account, lapsed)

    def _swept(self, key_id: str) -> _Account | None:
        account = self._accounts.get(key_id)
        if account is not None:
            self._sweep(key_id, account, self._now_us())
        return account

    def _end(self, key_id: str, account: _Account, request_id: str) -> None:
        """What it reserved goes back, but for the tokens; nothing where there is no such lease."""
        if (lease := account.leases.pop(request_id, None)) is not None:
            self._used_in(lease.month)[key_id] -= lease.pictures
