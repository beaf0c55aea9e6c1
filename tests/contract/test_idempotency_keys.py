"""Every form of the accounts answers a client's own name for a request once, and again for nothing."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest

from serving.domain.idempotency import KEPT_SECONDS, IdempotencyKey, fingerprint
from serving.domain.inference import RenderedAnswer
from serving.domain.month import Month
from serving.errors import (
    AnswerNotKept,
    IdempotencyKeyInUse,
    IdempotencyKeyReused,
    QuotaExceeded,
    RateLimited,
)
from serving.ports import Reservation
from tests.support.account_forms import KEPT_ANSWERS_BYTES, Accounts
from tests.support.requests import ANSWER, LEASE_SECONDS, admit, ask, event_of, principal, settle

KEY = IdempotencyKey("8e03978e-40d5-43dd-bc93-6894a57f9324", fingerprint([b"POST", b"/v1/infer", b"picture"]))
OTHER_REQUEST = replace(KEY, fingerprint=fingerprint([b"POST", b"/v1/infer", b"another picture"]))
CALLER = principal(rate=6000, burst=100, quota=1000)


async def answered(accounts: Accounts, *, answer: RenderedAnswer = ANSWER) -> Reservation:
    reservation = await admit(accounts.admission, CALLER, pictures=2, idempotency=KEY)
    await settle(accounts, reservation, answer=answer)
    return reservation


@pytest.mark.parametrize(
    "answer",
    [
        RenderedAnswer(b"", {}),
        ANSWER,
        RenderedAnswer(bytes(range(256)) * 400, {"content-type": "application/json", "x": "a\nb"}),
    ],
    ids=["empty", "json", "long and binary"],
)
async def test_the_same_request_gets_the_same_answer_and_takes_nothing(
    accounts: Accounts, answer: RenderedAnswer
) -> None:
    reservation = await answered(accounts, answer=answer)

    for _ in range(3):
        assert await ask(accounts.admission, CALLER, pictures=2, idempotency=KEY) == replace(
            answer, replayed=True
        )

    assert accounts.billed("key_a") == [event_of(reservation)]
    assert accounts.charged("key_a", Month.of(accounts.now)) == 2
    assert (await accounts.admission.limits(CALLER)).tokens == 98


async def test_it_is_answered_even_where_a_limit_is_reached(accounts: Accounts) -> None:
    await answered(accounts)
    spent = principal(rate=1, burst=1, quota=2, at_once=1)
    with pytest.raises(QuotaExceeded):
        await admit(accounts.admission, spent)

    assert isinstance(await ask(accounts.admission, spent, idempotency=KEY), RenderedAnswer)


@pytest.mark.parametrize("state", ["in progress", "answered"])
async def test_another_request_by_the_same_name_is_refused(accounts: Accounts, state: str) -> None:
    if state == "answered":
        await answered(accounts)
    else:
        await admit(accounts.admission, CALLER, idempotency=KEY)

    with pytest.raises(IdempotencyKeyReused):
        await ask(accounts.admission, CALLER, idempotency=OTHER_REQUEST)


async def test_one_of_two_hundred_at_once_is_let_through(accounts: Accounts) -> None:
    caller = principal(burst=200)

    answers = await asyncio.gather(
        *(ask(accounts.admission, caller, idempotency=KEY) for _ in range(200)), return_exceptions=True
    )

    assert sum(isinstance(answer, Reservation) for answer in answers) == 1
    assert sum(isinstance(answer, IdempotencyKeyInUse) for answer in answers) == 199
    assert (await accounts.admission.limits(caller)).tokens == 199


async def test_what_is_in_progress_says_when_to_ask_again(accounts: Accounts) -> None:
    await admit(accounts.admission, CALLER, lease_seconds=30, idempotency=KEY)
    retry_after = []
    for passed_seconds in (0, 29.5):
        accounts.advance(passed_seconds)
        with pytest.raises(IdempotencyKeyInUse) as caught:
            await ask(accounts.admission, CALLER, idempotency=KEY)
        retry_after.append(caught.value.retry_after_seconds)

    assert retry_after == [1, 0.5]


async def test_who_only_asks_for_the_answer_gets_it_and_claims_nothing(accounts: Accounts) -> None:
    assert await accounts.admission.answered(CALLER, KEY) is None
    reservation = await answered(accounts)

    for caller in (CALLER, principal(rate=1, burst=1, quota=0)):  # whatever its limits are by now
        assert await accounts.admission.answered(caller, KEY) == replace(ANSWER, replayed=True)
    assert await accounts.admission.answered(principal(key_id="key_b"), KEY) is None
    assert await accounts.admission.answered(CALLER, replace(KEY, key="another")) is None
    with pytest.raises(IdempotencyKeyReused):
        await accounts.admission.answered(CALLER, OTHER_REQUEST)

    accounts.advance(KEPT_SECONDS)
    assert await accounts.admission.answered(CALLER, OTHER_REQUEST) is None
    assert accounts.billed("key_a") == [event_of(reservation)]
    assert accounts.charged("key_a", reservation.month) == 2


async def test_who_only_asks_while_it_is_in_progress_is_told_so(accounts: Accounts) -> None:
    await admit(accounts.admission, CALLER, idempotency=KEY)
    with pytest.raises(IdempotencyKeyInUse) as caught:
        await accounts.admission.answered(CALLER, KEY)
    with pytest.raises(IdempotencyKeyReused):
        await accounts.admission.answered(CALLER, OTHER_REQUEST)

    accounts.advance(LEASE_SECONDS)
    assert caught.value.retry_after_seconds == 1
    assert await accounts.admission.answered(CALLER, KEY) is None


async def test_keys_of_different_callers_are_different_keys(accounts: Accounts) -> None:
    await answered(accounts)

    await admit(accounts.admission, principal(key_id="key_b"), idempotency=KEY)


async def test_what_failed_may_be_asked_again_at_once(accounts: Accounts) -> None:
    reservation = await admit(accounts.admission, CALLER, idempotency=KEY)

    await accounts.admission.give_back(reservation)

    await admit(accounts.admission, CALLER, idempotency=OTHER_REQUEST)


async def test_what_was_refused_claims_nothing(accounts: Accounts) -> None:
    caller = principal(burst=1)
    await admit(accounts.admission, caller)
    with pytest.raises(RateLimited):
        await ask(accounts.admission, caller, idempotency=KEY)
    accounts.advance(1)

    await admit(accounts.admission, caller, idempotency=OTHER_REQUEST)


async def test_giving_back_what_is_answered_does_not_forget_the_answer(accounts: Accounts) -> None:
    reservation = await answered(accounts)

    await accounts.admission.give_back(reservation)

    assert isinstance(await ask(accounts.admission, CALLER, idempotency=KEY), RenderedAnswer)


async def test_giving_back_leaves_the_claim_of_whoever_took_over(accounts: Accounts) -> None:
    lapsed = await admit(accounts.admission, CALLER, idempotency=KEY)
    accounts.advance(LEASE_SECONDS)
    await admit(accounts.admission, CALLER, idempotency=KEY)

    await accounts.admission.give_back(lapsed)

    with pytest.raises(IdempotencyKeyInUse):
        await ask(accounts.admission, CALLER, idempotency=KEY)


async def test_an_answer_is_kept_for_a_day_and_not_longer(accounts: Accounts) -> None:
    await answered(accounts)

    accounts.advance(KEPT_SECONDS - 1e-6)
    assert isinstance(await ask(accounts.admission, CALLER, idempotency=KEY), RenderedAnswer)
    accounts.advance(1e-6)

    await admit(accounts.admission, CALLER, idempotency=OTHER_REQUEST)
    with pytest.raises(IdempotencyKeyInUse):
        await ask(accounts.admission, CALLER, idempotency=OTHER_REQUEST)


async def test_of_a_gateway_that_was_killed_the_next_takes_over_when_its_lease_lapses(
    accounts: Accounts,
) -> None:
    await admit(accounts.admission, CALLER, pictures=2, idempotency=KEY)
    accounts.advance(LEASE_SECONDS - 1e-6)
    with pytest.raises(IdempotencyKeyInUse):
        await ask(accounts.admission, CALLER, pictures=2, idempotency=KEY)

    accounts.advance(1e-6)
    second = await answered(accounts)

    assert accounts.billed("key_a") == [event_of(second)]
    assert (await accounts.admission.limits(CALLER)).quota == 998


async def test_what_is_too_large_to_be_kept_is_not_billed_again(accounts: Accounts) -> None:
    large = RenderedAnswer(random.Random(1).randbytes(KEPT_ANSWERS_BYTES + 1), {})
    reservation = await answered(accounts, answer=large)

    for _ in range(2):
        with pytest.raises(AnswerNotKept):
            await ask(accounts.admission, CALLER, pictures=2, idempotency=KEY)
        await accounts.admission.give_back(reservation)
    with pytest.raises(IdempotencyKeyReused):
        await ask(accounts.admission, CALLER, idempotency=OTHER_REQUEST)

    assert accounts.billed("key_a") == [event_of(reservation)]
    accounts.advance(KEPT_SECONDS)
    await admit(accounts.admission, CALLER, idempotency=KEY)


@pytest.mark.parametrize("second_ends", [False, True], ids=["in progress", "answered"])
async def test_who_comes_back_after_being_taken_over_is_not_billed(
    accounts: Accounts, second_ends: bool
) -> None:
    frozen = await admit(accounts.admission, CALLER, pictures=2, idempotency=KEY)
    accounts.advance(LEASE_SECONDS)
    second = await admit(accounts.admission, CALLER, pictures=2, idempotency=KEY)
    if second_ends:
        await settle(accounts, second)

    with pytest.raises(IdempotencyKeyInUse):
        await settle(accounts, frozen, answer=replace(ANSWER, body=b"too late"))
    await accounts.admission.give_back(frozen)
    if not second_ends:
        await settle(accounts, second)

    assert accounts.billed("key_a") == [event_of(second)]
    assert (await accounts.admission.limits(CALLER)).quota == 998
    assert await ask(accounts.admission, CALLER, idempotency=KEY) == replace(ANSWER, replayed=True)


async def test_who_comes_back_before_anybody_took_over_is_billed(accounts: Accounts) -> None:
    frozen = await admit(accounts.admission, CALLER, pictures=2, idempotency=KEY)
    accounts.advance(LEASE_SECONDS)

    await settle(accounts, frozen)

    assert accounts.billed("key_a") == [event_of(frozen)]
    assert await ask(accounts.admission, CALLER, idempotency=KEY) == replace(ANSWER, replayed=True)
