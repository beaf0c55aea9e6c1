"""Admission and metering that go on without Redis: a client meets its limits, and never our trouble.

Each call asks Redis while the watch says that it can be relied on. The first call that fails tells the watch
so, and is answered from this process' own accounts and journal, as all that follow are, until the watch has
brought Redis back. Reservations do not say where they come from: one that Redis made may be settled in the
journal, and one that was made here in Redis, which finds no lease, and charges it anew.

Where Redis is there and answers a call with an error, what is wrong may be one key's account: that call alone
is answered from here, and no other key is the worse for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from serving.adapters.journal import Journal
from serving.adapters.journal_record import JournalRecord
from serving.adapters.left_with_redis import LeftWithRedis, Watch
from serving.adapters.local_accounts import LocalAccounts
from serving.adapters.redis.meter import Appended
from serving.adapters.redis.retained import Absent, RetainedEvents
from serving.domain.idempotency import IdempotencyKey
from serving.domain.inference import RenderedAnswer
from serving.domain.limits import LimitState
from serving.domain.tenant import Principal
from serving.domain.usage import UsageEvent
from serving.errors import AccountsUnavailable, IdempotencyKeyInUse, LimitReached
from serving.ports import Admission, Reservation

_NOTHING = LimitState(0, 0.0, None, 0.0, None)


class AppendingMeter(Protocol):
    """What `RedisMeter` does, and says of it."""

    async def append(
        self,
        event: UsageEvent,
        *,
        idempotency: IdempotencyKey | None,
        answer: RenderedAnswer | None,
        only_owner: bool = False,
    ) -> Appended: ...


class FallbackAdmission:
    """`Admission` that never raises AccountsUnavailable."""

    def __init__(self, primary: Admission, local: LocalAccounts, watch: Watch) -> None:
        self._primary = primary
        self._local = local
        self._watch = watch
        self._left = LeftWithRedis(primary, watch)

    async def admit(
        self,
        principal: Principal,
        *,
        request_id: str,
        pictures: int,
        lease_seconds: float,
        idempotency: IdempotencyKey | None = None,
    ) -> Reservation | RenderedAnswer:
        # Redis may not have it yet: what was answered without it is still on its way from the journal.
        if (answer := self._local.answered(principal.key_id, idempotency)) is not None:
            return answer
        self._left.is_under_way(principal.key_id, request_id)
        if not self._watch.in_fallback:
            try:
                admitted = await self._primary.admit(
                    principal,
                    request_id=request_id,
                    pictures=pictures,
                    lease_seconds=lease_seconds,
                    idempotency=idempotency,
                )
            except AccountsUnavailable as error:
                self._failed(error)
                self._left.doubt(principal.key_id, request_id)
            except LimitReached as refused:
                self._note(principal, refused.limits)
                raise
            else:
                if isinstance(admitted, Reservation):
                    self._note(principal, admitted.limits)
                    await self._claim(admitted, lease_seconds)
                return admitted
        try:
            return await self._local.admit(
                principal,
                request_id=request_id,
                pictures=pictures,
                lease_seconds=lease_seconds,
                idempotency=idempotency,
            )
        except BaseException:
            if self._left.is_in_doubt(principal.key_id, request_id):
                now = self._local.admitted_at()
                await self._left.give_back(
                    Reservation(request_id, principal.key_id, pictures, now, _NOTHING, idempotency)
                )
            raise

    async def answered(self, principal: Principal, idempotency: IdempotencyKey) -> RenderedAnswer | None:
        if (answer := self._local.answered(principal.key_id, idempotency)) is not None:
            return answer
        if not self._watch.in_fallback:
            try:
                return await self._primary.answered(principal, idempotency)
            except AccountsUnavailable as error:
                self._failed(error)
        return None

    async def give_back(self, reservation: Reservation) -> None:
        """In fallback, what Redis has reserved is given back once that is over."""
        was_admitted_here = await self._local.give_back(reservation)
        if not was_admitted_here or self._left.is_in_doubt(reservation.key_id, reservation.request_id):
            await self._left.give_back(reservation)

    async def hand_over(self) -> None:
        """Give back to Redis what could not be while it was gone."""
        await self._left.hand_over()

    async def limits(self, principal: Principal) -> LimitState:
        if not self._watch.in_fallback:
            try:
                left = await self._primary.limits(principal)
            except AccountsUnavailable as error:
                self._failed(error)
            else:
                self._note(principal, left)
                return left
        return await self._local.limits(principal)

    def _failed(self, error: AccountsUnavailable) -> None:
        if not error.is_of_one_call:
            self._watch.failed(error)

    def _note(self, principal: Principal, left: LimitState | None) -> None:
        if left is not None and not self._watch.in_fallback:  # else others were admitted here since
            self._local.note(principal, left)

    async def _claim(self, reservation: Reservation, lease_seconds: float) -> None:
        try:
            self._local.claim(reservation, lease_seconds)
        except IdempotencyKeyInUse:
            await self._left.give_back(reservation)
            raise


class FallbackMeter:
    """`UsageMeter` that raises AccountsUnavailable only where the journal does not take an event either."""

    def __init__(
        self,
        primary: AppendingMeter,
        local: LocalAccounts,
        watch: Watch,
        *,
        journal: Journal,
        retained: RetainedEvents,
    ) -> None:
        self._primary = primary
        self._local = local
        self._watch = watch
        self._journal = journal
        self._retained = retained

    async def settle(self, event: UsageEvent, reservation: Reservation, answer: RenderedAnswer) -> None:
        """Besides the port's errors, IdempotencyKeyInUse: see `RedisMeter.append`."""
        idempotency = reservation.idempotency
        record = JournalRecord(event, idempotency, None if idempotency is None else answer)
        if not await self._settled_by_redis(record):
            self._local.hold(reservation)
            # Also where Redis may have it, and has not said so: the ledger knows an event by its id.
            await self._journal.append(record)
        self._local.settle(event, reservation, answer)

    async def hand_over(self, absent: Absent) -> None:
        """Tell Redis what it was not told, or has lost. Raises AccountsUnavailable, OSError."""
        await self._retained.restore(self._append_or_journal, absent)
        await self._journal.replay(self._append_all)

    async def _settled_by_redis(self, record: JournalRecord) -> bool:
        if self._watch.in_fallback:
            return False
        try:
            await self._append(record, only_owner=True)
        except AccountsUnavailable as error:
            if not error.is_of_one_call:
                self._watch.failed(error)
            return False
        return True

    async def _append_all(self, records: Sequence[JournalRecord]) -> Sequence[JournalRecord]:
        """Those that Redis has refused, and not for trouble of its own."""
        appended = await asyncio.gather(*map(self._is_appended, records))
        return [record for record, is_appended in zip(records, appended, strict=True) if not is_appended]

    async def _append_or_journal(self, record: JournalRecord) -> None:
        if not await self._is_appended(record):
            await self._journal.append(record)

    async def _is_appended(self, record: JournalRecord) -> bool:
        try:
            await self._append(record)
        except AccountsUnavailable as error:
            if error.is_of_one_call:
                return False
            raise
        return True

    async def _append(self, record: JournalRecord, *, only_owner: bool = False) -> None:
        appended = await self._primary.append(
            record.event, idempotency=record.idempotency, answer=record.answer, only_owner=only_owner
        )
        self._retained.keep(record, appended)
