"""Admission by one gateway alone: its share of every limit, from where the shared ones were last seen."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Protocol

from serving.adapters.journal import APPEND_TIMEOUT_SECONDS
from serving.adapters.limits import ASK_AGAIN_SECONDS, MICROSECONDS, over_quota
from serving.adapters.memory.admission import InMemoryAdmission
from serving.adapters.memory.answers import KeptAnswers
from serving.domain.idempotency import IdempotencyKey
from serving.domain.inference import RenderedAnswer
from serving.domain.limits import LimitState
from serving.domain.month import Month
from serving.domain.tenant import Principal, Tier
from serving.domain.usage import UsageEvent
from serving.errors import AnswerNotKept, IdempotencyKeyInUse, IdempotencyKeyUnsure, QuotaExceeded
from serving.ports import Clock, Reservation

MAX_KNOWN_KEYS = 100_000
MAX_OPEN_RESERVATIONS = 65_536
A_DAY = timedelta(days=1)
HOLD_SECONDS = 2 * APPEND_TIMEOUT_SECONDS
"""Longer than an append may take, a stall of the event loop included."""


class Charges(Protocol):
    """Collects what the shared buckets are to be charged with later."""

    def add(self, key_id: str, tier: Tier, pictures: int) -> None: ...

    def take_back(self, key_id: str, pictures: int) -> None: ...


@dataclass(slots=True)
class _Known:
    """What others than this process have said of a key, as of `at_seconds`.

    used: pictures charged in `month`, whatever the tier was that it had then; None where nobody has said.
    tokens: None once its bucket here has gone on from there.
    """

    month: Month
    used: int | None
    tokens: int | None
    at_seconds: float


class LocalAccounts:
    """A picture costs as many tokens as there are gateways: all of them together admit no more than one
    bucket would. Of the requests at a time, and of what is left of the month's quota, each gateway has its
    share, rounded up. What is left of a key's quota that Redis never told this process, the ledger says.

    Nothing suspends between a decision and what it takes.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        gateways: Callable[[], int],
        admitted_at: Callable[[], datetime],
        charges: Charges,
        used_this_month: Callable[[str], Awaitable[int | None]],
    ) -> None:
        """gateways: how many there are, at least 1. admitted_at: what time it is on Redis' clock.
        used_this_month: of a key id, by the ledger, and soon; None where it cannot tell.
        """
        self._clock = clock
        self._gateways = gateways
        self._admission = InMemoryAdmission(clock, picture_costs=gateways, admitted_at=admitted_at)
        self.admitted_at = admitted_at
        self._charges = charges
        self._used_this_month = used_this_month
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._open: OrderedDict[tuple[str, str], Reservation] = OrderedDict()
        self._answers = KeptAnswers()

    def note(self, principal: Principal, left: LimitState) -> None:
        """What Redis said that is left, whether it admitted the request or refused it."""
        quota = principal.tier.monthly_quota
        used = None if quota is None or left.quota is None else max(0, quota - left.quota)
        # Its month, and not what is the month here: of the two clocks, one may be past midnight already.
        month = Month.of(self.admitted_at() + timedelta(seconds=left.month_ends_seconds) - A_DAY)
        self._keep(principal.key_id, _Known(month, used, left.tokens, self._clock.monotonic()))

    def claim(self, reservation: Reservation, lease_seconds: float) -> None:
        """What Redis has admitted has its idempotency key here too, for Redis may be gone when it settles.

        Raises IdempotencyKeyInUse where a request has it that was admitted here meanwhile.
        """
        self._hold(reservation, lease_seconds)

    def hold(self, reservation: Reservation) -> None:
        """Before it is journaled: its idempotency key is still its own, and is until that is done.

        Raises IdempotencyKeyInUse where its lease had lapsed, and another request has taken the key over.
        """
        self._hold(reservation, HOLD_SECONDS)

    def answered(self, key_id: str, idempotency: IdempotencyKey | None) -> RenderedAnswer | None:
        """What this process has answered, and kept. Raises IdempotencyKeyReused, IdempotencyKeyInUse."""
        try:
            return self._find(key_id, idempotency)
        except AnswerNotKept:
            return None  # Redis, which has more room, may have kept it

    def keep_answer(self, reservation: Reservation, answer: RenderedAnswer) -> None:
        if (idempotency := reservation.idempotency) is None:
            return
        with contextlib.suppress(IdempotencyKeyInUse):  # by a later request, whose answer is kept instead
            self._answers.keep(
                reservation.key_id, idempotency, reservation.request_id, answer, self._now_us()
            )

    async def admit(
        self,
        principal: Principal,
        *,
        request_id: str,
        pictures: int,
        lease_seconds: float,
        idempotency: IdempotencyKey | None,
    ) -> Reservation | RenderedAnswer:
        """As the port says, but never AccountsUnavailable.

        Raises IdempotencyKeyUnsure for an idempotency key that this process has not answered: only Redis
        knows whether another has, and to bill it twice is worse than to have it asked again.
        """
        if idempotency is not None:
            if (answer := self._find(principal.key_id, idempotency)) is not None:
                return answer
            raise IdempotencyKeyUnsure(ASK_AGAIN_SECONDS)
        await self._ask_ledger(principal)
        self._resume(principal)
        try:
            admitted = await self._admission.admit(
                self._with_its_share(principal),
                request_id=request_id,
                pictures=pictures,
                lease_seconds=lease_seconds,
            )
        except QuotaExceeded as refused:
            if refused.limits is None:
                raise
            raise over_quota(principal.tier, pictures, refused.limits) from None  # not of the share of it
        assert isinstance(admitted, Reservation)  # no idempotency key, no answer
        self._charges.add(principal.key_id, principal.tier, pictures)
        self._open[principal.key_id, request_id] = admitted
        if len(self._open) > MAX_OPEN_RESERVATIONS:
            self._open.popitem(last=False)
        return admitted

    async def limits(self, principal: Principal) -> LimitState:
        await self._ask_ledger(principal)
        self._resume(principal)
        return await self._admission.limits(self._with_its_share(principal))

    async def give_back(self, reservation: Reservation) -> bool:
        """False where it was not admitted by this process; its idempotency key is free in any case."""
        if reservation.idempotency is not None:
            self._answers.release(reservation.key_id, reservation.idempotency, reservation.request_id)
        if self._open.pop((reservation.key_id, reservation.request_id), None) is None:
            return False
        self._charges.take_back(reservation.key_id, reservation.pictures)
        await self._admission.give_back(reservation)
        return True

    def settle(self, event: UsageEvent, reservation: Reservation, answer: RenderedAnswer) -> None:
        """End it as billed, if it is of this process."""
        self.keep_answer(reservation, answer)
        if self._open.pop((reservation.key_id, reservation.request_id), None) is not None:
            self._charges.take_back(reservation.key_id, reservation.pictures - event.pictures)
            self._admission.settle(event, replace(reservation, idempotency=None), answer)

    def _find(self, key_id: str, idempotency: IdempotencyKey | None) -> RenderedAnswer | None:
        return None if idempotency is None else self._answers.find(key_id, idempotency, self._now_us())

    async def _ask_ledger(self, principal: Principal) -> None:
        if not self._is_quota_unknown(principal):
            return
        used = await self._used_this_month(principal.key_id)
        if used is None or not self._is_quota_unknown(principal):  # Redis may have come back meanwhile
            return
        before, month = self._known.get(principal.key_id), self._month()
        tokens, at_seconds = (before.tokens, before.at_seconds) if before else (None, 0.0)
        self._keep(principal.key_id, _Known(month, used, tokens, at_seconds))
        # Of what was admitted here before, nobody can tell how much the ledger has: no picture counts twice.
        used = max(used, self._admission.charged(principal.key_id, month))
        self._admission.resume(principal, None, used=used)

    def _is_quota_unknown(self, principal: Principal) -> bool:
        if principal.tier.monthly_quota is None:
            return False
        known = self._known.get(principal.key_id)
        return known is None or known.used is None or known.month != self._month()

    def _keep(self, key_id: str, known: _Known) -> None:
        self._known[key_id] = known
        self._known.move_to_end(key_id)
        if len(self._known) > MAX_KNOWN_KEYS:
            self._known.popitem(last=False)

    def _resume(self, principal: Principal) -> None:
        """Once for each time that Redis was heard: from then on it is counted here."""
        known = self._known.get(principal.key_id)
        if known is None or known.tokens is None:
            return
        elapsed_seconds = self._clock.monotonic() - known.at_seconds
        tokens = known.tokens + int(elapsed_seconds * principal.tier.rate_limit_per_minute / 60)
        used = known.used if known.month == self._month() else None
        self._admission.resume(principal, tokens, used=used)
        known.tokens = None

    def _with_its_share(self, principal: Principal) -> Principal:
        tier, gateways = principal.tier, self._gateways()
        most, quota = tier.max_concurrent_requests, tier.monthly_quota
        if gateways == 1 or (most is None and quota is None):
            return principal
        if most is not None:
            most = -(-most // gateways)
        if quota is not None:
            used = min(quota, self._used_elsewhere(principal.key_id))
            quota = used - (used - quota) // gateways
        return replace(principal, tier=replace(tier, max_concurrent_requests=most, monthly_quota=quota))

    def _used_elsewhere(self, key_id: str) -> int:
        """In this month, when it was last heard of; 0 where nobody can tell."""
        known = self._known.get(key_id)
        return known.used or 0 if known is not None and known.month == self._month() else 0

    def _hold(self, reservation: Reservation, seconds: float) -> None:
        if reservation.idempotency is not None:
            now_us = self._now_us()
            self._answers.hold(
                reservation.key_id,
                reservation.idempotency,
                reservation.request_id,
                now_us=now_us,
                ends_at_us=now_us + round(seconds * MICROSECONDS),
            )

    def _month(self) -> Month:
        return Month.of(self.admitted_at())

    def _now_us(self) -> int:
        return round(self._clock.monotonic() * MICROSECONDS)
