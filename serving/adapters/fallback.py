"""Admission and metering that go on without Redis: a client meets its limits, and never our trouble.

Each call asks Redis while the watch says that it can be relied on. The first call that fails tells the watch
so, and is answered from this process' own accounts and journal, as all that follow are, until the watch has
brought Redis back. Reservations do not say where they come from: one that Redis made may be settled in the
journal, and one that was made here in Redis, which finds no lease, and charges it anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from serving.adapters.journal import Journal
from serving.adapters.journal_record import JournalRecord
from serving.adapters.local_accounts import LocalAccounts
from serving.adapters.redis.meter import Appended
from serving.adapters.redis.retained import Absent, RetainedEvents
from serving.domain.idempotency import IdempotencyKey
from serving.domain.inference import RenderedAnswer
from serving.domain.limits import LimitState
from serving.domain.tenant import Principal
from serving.domain.usage import UsageEvent
from serving.errors import AccountsUnavailable
from serving.ports import Admission, Reservation


class Watch(Protocol):
    """Who knows whether Redis can be relied on."""

    @property
    def in_fallback(self) -> bool: ...

    def failed(self, error: AccountsUnavailable) -> None:
        """A call has failed: from now on, `in_fallback`."""


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
                self._watch.failed(error)
            else:
                if isinstance(admitted, Reservation) and not self._watch.in_fallback:
                    self._local.note(admitted)
                return admitted
        return await self._local.admit(
            principal,
            request_id=request_id,
            pictures=pictures,
            lease_seconds=lease_seconds,
            idempotency=idempotency,
        )

    async def give_back(self, reservation: Reservation) -> None:
        """In fallback, what Redis has reserved is left to lapse."""
        if not await self._local.give_back(reservation) and not self._watch.in_fallback:
            await self._primary.give_back(reservation)

    async def limits(self, principal: Principal) -> LimitState:
        if not self._watch.in_fallback:
            try:
                return await self._primary.limits(principal)
            except AccountsUnavailable as error:
                self._watch.failed(error)
        return await self._local.limits(principal)


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
            # Also where Redis may have it, and has not said so: the ledger knows an event by its id.
            await self._journal.append(record)
        self._local.settle(event, reservation, answer)

    async def hand_over(self, absent: Absent) -> None:
        """Tell Redis what it was not told, or has lost. Raises AccountsUnavailable, OSError."""
        await self._retained.restore(self._append, absent)
        await self._journal.replay(self._append_all)

    async def _settled_by_redis(self, record: JournalRecord) -> bool:
        if self._watch.in_fallback:
            return False
        try:
            await self._append(record, only_owner=True)
        except AccountsUnavailable as error:
            self._watch.failed(error)
            return False
        return True

    async def _append_all(self, records: Sequence[JournalRecord]) -> None:
        await asyncio.gather(*map(self._append, records))

    async def _append(self, record: JournalRecord, *, only_owner: bool = False) -> None:
        appended = await self._primary.append(
            record.event, idempotency=record.idempotency, answer=record.answer, only_owner=only_owner
        )
        self._retained.keep(record, appended)
