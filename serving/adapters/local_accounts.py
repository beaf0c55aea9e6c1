"""Admission by one gateway alone: its share of every limit, from where the shared ones were last seen."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from serving.adapters.limits import MICROSECONDS
from serving.adapters.memory.admission import InMemoryAdmission
from serving.adapters.memory.answers import KeptAnswers
from serving.domain.idempotency import IdempotencyKey
from serving.domain.inference import RenderedAnswer
from serving.domain.limits import LimitState
from serving.domain.month import Month
from serving.domain.tenant import Principal, Tier
from serving.domain.usage import UsageEvent
from serving.errors import IdempotencyKeyInUse
from serving.ports import Clock, Reservation

MAX_KNOWN_KEYS = 100_000
MAX_OPEN_RESERVATIONS = 65_536


class Charges(Protocol):
    """Collects what the shared buckets are to be charged with later."""

    def add(self, key_id: str, tier: Tier, pictures: int) -> None: ...

    def take_back(self, key_id: str, pictures: int) -> None: ...


@dataclass(frozen=True, slots=True)
class _Known:
    """What was left of a key's limits, and when that was."""

    limits: LimitState
    month: Month
    at_seconds: float


class LocalAccounts:
    """A picture costs as many tokens as there are gateways: all of them together admit no more than one
    bucket would. Of the requests at a time, each gateway has its share, rounded up. The month's quota is not
    divided: what was left of it when it was last seen, each of them may use.

    Nothing suspends between a decision and what it takes.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        gateways: Callable[[], int],
        admitted_at: Callable[[], datetime],
        charges: Charges,
    ) -> None:
        """gateways: how many there are, at least 1. admitted_at: what time it is on Redis' clock."""
        self._clock = clock
        self._gateways = gateways
        self._admission = InMemoryAdmission(clock, picture_costs=gateways, admitted_at=admitted_at)
        self._admitted_at = admitted_at
        self._charges = charges
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._open: OrderedDict[tuple[str, str], Reservation] = OrderedDict()
        self._answers = KeptAnswers()

    def note(self, reservation: Reservation) -> None:
        """What Redis has admitted, and what it left."""
        known = _Known(reservation.limits, reservation.month, self._clock.monotonic())
        self._known[reservation.key_id] = known
        self._known.move_to_end(reservation.key_id)
        if len(self._known) > MAX_KNOWN_KEYS:
            self._known.popitem(last=False)

    def answered(self, key_id: str, idempotency: IdempotencyKey | None) -> RenderedAnswer | None:
        """What this process has answered before. Raises IdempotencyKeyReused, IdempotencyKeyInUse."""
        return None if idempotency is None else self._answers.find(key_id, idempotency, self._now_us())

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
        """As the port says, but never AccountsUnavailable."""
        if (answer := self.answered(principal.key_id, idempotency)) is not None:
            return answer
        self._resume(principal)
        admitted = await self._admission.admit(
            self._with_its_share(principal),
            request_id=request_id,
            pictures=pictures,
            lease_seconds=lease_seconds,
        )
        assert isinstance(admitted, Reservation)  # answers are not kept there, but here
        reservation = replace(admitted, idempotency=idempotency)
        if idempotency is not None:
            ends_at_us = self._now_us() + round(lease_seconds * MICROSECONDS)
            self._answers.claim(principal.key_id, idempotency, request_id, ends_at_us)
        self._charges.add(principal.key_id, principal.tier, pictures)
        self._open[principal.key_id, request_id] = reservation
        if len(self._open) > MAX_OPEN_RESERVATIONS:
            self._open.popitem(last=False)
        return reservation

    async def limits(self, principal: Principal) -> LimitState:
        self._resume(principal)
        return await self._admission.limits(self._with_its_share(principal))

    async def give_back(self, reservation: Reservation) -> bool:
        """False where it is not of this process."""
        if self._open.pop((reservation.key_id, reservation.request_id), None) is None:
            return False
        if reservation.idempotency is not None:
            self._answers.release(reservation.key_id, reservation.idempotency, reservation.request_id)
        self._charges.take_back(reservation.key_id, reservation.pictures)
        await self._admission.give_back(reservation)
        return True

    def settle(self, event: UsageEvent, reservation: Reservation, answer: RenderedAnswer) -> None:
        """End it as billed, if it is of this process."""
        self.keep_answer(reservation, answer)
        if self._open.pop((reservation.key_id, reservation.request_id), None) is not None:
            self._charges.take_back(reservation.key_id, reservation.pictures - event.pictures)
            self._admission.settle(event, replace(reservation, idempotency=None), answer)

    def _resume(self, principal: Principal) -> None:
        """Once for each time that Redis was heard: from then on it is counted here."""
        known = self._known.pop(principal.key_id, None)
        if known is None:
            return
        tier, limits = principal.tier, known.limits
        elapsed_seconds = self._clock.monotonic() - known.at_seconds
        tokens = limits.tokens + int(elapsed_seconds * tier.rate_limit_per_minute / 60)
        used = None
        if tier.monthly_quota is not None and limits.quota is not None and known.month == self._month():
            used = max(0, tier.monthly_quota - limits.quota)
        self._admission.resume(principal, tokens, used=used)

    def _with_its_share(self, principal: Principal) -> Principal:
        most = principal.tier.max_concurrent_requests
        if most is None:
            return principal
        share = -(-most // self._gateways())
        return replace(principal, tier=replace(principal.tier, max_concurrent_requests=share))

    def _month(self) -> Month:
        return Month.of(self._admitted_at())

    def _now_us(self) -> int:
        return round(self._clock.monotonic() * MICROSECONDS)
