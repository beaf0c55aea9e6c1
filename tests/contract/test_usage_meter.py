"""Every form of `UsageMeter` records an answer once, and ends its reservation."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from serving.domain.month import Month
from tests.support.account_forms import Accounts, NewAccounts
from tests.support.requests import ANSWER, LEASE_SECONDS, admit, event_of, principal, settle


async def test_nothing_settled_is_nothing_owed(accounts: Accounts) -> None:
    assert accounts.billed("key_a") == []


async def test_an_answer_is_recorded_in_every_field(accounts: Accounts) -> None:
    reservation = await admit(accounts.admission, principal(), pictures=2)
    event = event_of(reservation)

    await accounts.meter.settle(event, reservation, ANSWER)

    assert accounts.billed("key_a") == [event]
    assert event.admitted_at == accounts.now


async def test_the_same_request_is_settled_once(accounts: Accounts) -> None:
    reservation = await admit(accounts.admission, principal())

    await asyncio.gather(*(settle(accounts, reservation) for _ in range(200)))

    assert accounts.billed("key_a") == [event_of(reservation)]


async def test_two_hundred_at_once_are_all_there(accounts: Accounts) -> None:
    caller = principal(burst=400, quota=400)
    reservations = await asyncio.gather(*(admit(accounts.admission, caller, pictures=2) for _ in range(200)))

    await asyncio.gather(*(settle(accounts, reservation) for reservation in reservations))

    assert {event.request_id for event in accounts.billed("key_a")} == {
        reservation.request_id for reservation in reservations
    }
    assert accounts.charged("key_a", Month.of(accounts.now)) == 400


async def test_keys_are_kept_apart(accounts: Accounts) -> None:
    for number in range(64):  # of all partitions
        await settle(accounts, await admit(accounts.admission, principal(key_id=f"key_{number}")))

    assert [len(accounts.billed(f"key_{number}")) for number in range(64)] == [1] * 64


async def test_what_is_settled_stays_charged_when_its_lease_would_have_lapsed(accounts: Accounts) -> None:
    caller = principal(rate=6000, quota=10)
    await settle(accounts, await admit(accounts.admission, caller, pictures=4))
    accounts.advance(2 * LEASE_SECONDS)

    assert (await accounts.admission.limits(caller)).quota == 6


@pytest.mark.parametrize(("billed", "left"), [(0, 10), (1, 9), (3, 7), (4, 6)])
async def test_pictures_of_a_list_that_were_not_billed_are_given_back(
    accounts: Accounts, billed: int, left: int
) -> None:
    caller = principal(burst=10, quota=10, at_once=1)
    reservation = await admit(accounts.admission, caller, pictures=4)

    await settle(accounts, reservation, pictures=billed)

    state = await accounts.admission.limits(caller)
    assert (state.tokens, state.quota, state.concurrent) == (left, left, 1)


async def test_what_is_settled_after_its_lease_is_charged_anew(accounts: Accounts) -> None:
    caller = principal(rate=6000, quota=10)
    late = await admit(accounts.admission, caller, pictures=4)
    accounts.advance(LEASE_SECONDS)
    assert (await accounts.admission.limits(caller)).quota == 10

    await settle(accounts, late, pictures=3)

    assert (await accounts.admission.limits(caller)).quota == 7
    assert accounts.billed("key_a") == [event_of(late, pictures=3)]


async def test_giving_back_what_is_settled_changes_nothing(accounts: Accounts) -> None:
    caller = principal(burst=10, quota=10)
    reservation = await admit(accounts.admission, caller, pictures=4)
    await settle(accounts, reservation)

    await accounts.admission.give_back(reservation)

    state = await accounts.admission.limits(caller)
    assert (state.tokens, state.quota) == (6, 6)


async def test_what_is_settled_after_the_month_is_charged_to_the_month_it_was_admitted_in(
    new_accounts: NewAccounts,
) -> None:
    async with new_accounts(datetime(2026, 1, 31, 23, 59, 59, tzinfo=UTC)) as accounts:
        in_time = await admit(accounts.admission, principal(), pictures=4)
        late = await admit(accounts.admission, principal(), pictures=5, lease_seconds=1)
        accounts.advance(2)
        await accounts.admission.limits(principal())

        await settle(accounts, in_time, pictures=3)
        await settle(accounts, late)

        assert accounts.charged("key_a", Month(2026, 1)) == 8
        assert accounts.charged("key_a", Month(2026, 2)) == 0
