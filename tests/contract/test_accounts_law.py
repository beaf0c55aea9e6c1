"""Whatever happens in whatever order, nothing is lost and nothing made: every form against a model."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.domain.month import Month
from serving.errors import LimitReached, QuotaExceeded, RateLimited, TooManyAtOnce
from serving.ports import Reservation
from tests.support.account_forms import Accounts, NewAccounts
from tests.support.requests import admit, principal, settle

RATE, BURST, QUOTA, AT_ONCE = 97, 20, 60, 4
START = datetime(2026, 1, 31, 23, 59, 30, tzinfo=UTC)  # a month ends in the midst of it
CALLER = principal(rate=RATE, burst=BURST, quota=QUOTA, at_once=AT_ONCE)


@dataclass
class Lease:
    reservation: Reservation
    ends_at: datetime


@dataclass
class Model:
    """What must be, by the rules as they are written down, with fractions of tokens."""

    accounts: Accounts
    level: Fraction = Fraction(BURST)
    open: list[Lease] = field(default_factory=list)
    ended: list[Reservation] = field(default_factory=list)
    billed: dict[Month, int] = field(default_factory=dict)

    def wait(self, microseconds: int) -> None:
        self.accounts.advance(microseconds / 1_000_000)
        self.level = min(Fraction(BURST), self.level + Fraction(microseconds * RATE, 60_000_000))
        for lease in [lease for lease in self.open if lease.ends_at <= self.accounts.now]:
            self.open.remove(lease)
            self.ended.append(lease.reservation)

    async def admit(self, pictures: int, lease_seconds: int) -> None:
        asked = admit(self.accounts.admission, CALLER, pictures=pictures, lease_seconds=lease_seconds)
        if (refusal := self._refusal(pictures)) is not None:
            with pytest.raises(LimitReached) as caught:
                await asked
            assert caught.type is refusal
            return
        reservation = await asked
        self.level -= pictures
        self.open.append(Lease(reservation, self.accounts.now + timedelta(seconds=lease_seconds)))

    async def settle(self, which: int, share: float) -> None:
        """Also one whose lease has lapsed, but none twice: the second charge is the consumer's to undo."""
        reservation, spare_tokens = self._take(which)
        if reservation is None:
            return
        billed = round(share * reservation.pictures)
        await settle(self.accounts, reservation, pictures=billed)
        if spare_tokens:
            self.level = min(Fraction(BURST), self.level + reservation.pictures - billed)
        self.billed[reservation.month] = self.billed.get(reservation.month, 0) + billed

    async def give_back(self, which: int) -> None:
        reservation, its_tokens = self._take(which)
        if reservation is None:
            return
        await self.accounts.admission.give_back(reservation)
        await self.accounts.admission.give_back(reservation)
        if its_tokens:
            self.level = min(Fraction(BURST), self.level + reservation.pictures)

    async def check(self) -> None:
        state = await self.accounts.admission.limits(CALLER)
        assert state.tokens == int(self.level)
        assert state.concurrent == AT_ONCE - len(self.open)
        assert state.quota == max(0, QUOTA - self._charged(Month.of(self.accounts.now)))
        for month in (Month(2026, 1), Month(2026, 2)):
            assert self.accounts.charged("key_a", month) == self._charged(month)

    def _charged(self, month: Month) -> int:
        leased = sum(each.reservation.pictures for each in self.open if each.reservation.month == month)
        return self.billed.get(month, 0) + leased

    def _refusal(self, pictures: int) -> type[LimitReached] | None:
        if self._charged(Month.of(self.accounts.now)) + pictures > QUOTA:
            return QuotaExceeded
        if self.level < pictures:
            return RateLimited
        return TooManyAtOnce if len(self.open) >= AT_ONCE else None

    def _take(self, which: int) -> tuple[Reservation | None, bool]:
        """One of all that have not been settled or given back, and whether its lease still lasts."""
        count = len(self.open) + len(self.ended)
        if not count:
            return None, False
        number = which % count
        if number < len(self.open):
            return self.open.pop(number).reservation, True
        return self.ended.pop(number - len(self.open)), False


Step = Callable[[Model], Awaitable[None]]


async def _wait(model: Model, microseconds: int) -> None:
    model.wait(microseconds)


PICTURES, WHICH = st.integers(1, BURST), st.integers(0, 99)
STEPS = st.lists(
    st.one_of(
        st.builds(lambda n, seconds: lambda model: model.admit(n, seconds), PICTURES, st.integers(1, 20)),
        st.builds(lambda which, share: lambda model: model.settle(which, share), WHICH, st.floats(0, 1)),
        st.builds(lambda which: lambda model: model.give_back(which), WHICH),
        st.builds(lambda wait_us: lambda model: _wait(model, wait_us), st.integers(0, 12_000_000)),
        st.just(lambda model: model.check()),
    ),
    max_size=50,
)


@given(steps=STEPS)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_charged_is_billed_or_leased_and_the_bucket_follows_the_formula(
    new_accounts: NewAccounts, steps: list[Step]
) -> None:
    async def run() -> None:
        async with new_accounts(START) as accounts:
            model = Model(accounts)
            for step in steps:
                await step(model)
            await model.check()

    asyncio.run(run())
