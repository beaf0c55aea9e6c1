"""Requests to the accounts, for tests that care about one or two of their terms."""

from __future__ import annotations

import asyncio
import itertools

from serving.domain.idempotency import IdempotencyKey
from serving.domain.inference import RenderedAnswer
from serving.domain.tenant import Principal, Tier
from serving.domain.usage import UsageEvent
from serving.errors import LimitReached
from serving.ports import Admission, Reservation
from tests.support.account_forms import Accounts
from tests.support.usage_events import make_event

LEASE_SECONDS = 35.0
ANSWER = RenderedAnswer(b'{"predictions":[]}', {"content-type": "application/json", "etag": '"é"'})
_numbers = itertools.count()


def principal(
    *,
    key_id: str = "key_a",
    rate: int = 60,
    burst: int = 10,
    quota: int | None = None,
    at_once: int | None = None,
) -> Principal:
    tier = Tier(
        "test",
        rate,
        burst,
        quota,
        max_pictures_per_request=burst,
        gpu=False,
        max_concurrent_requests=at_once,
    )
    return Principal(key_id, "ada", tier, models=None)


async def admit(
    admission: Admission,
    caller: Principal,
    request_id: str | None = None,
    *,
    pictures: int = 1,
    lease_seconds: float = LEASE_SECONDS,
    idempotency: IdempotencyKey | None = None,
) -> Reservation:
    """request_id: None is a new one. Raises what `Admission.admit` raises."""
    answer = await ask(
        admission,
        caller,
        request_id,
        pictures=pictures,
        lease_seconds=lease_seconds,
        idempotency=idempotency,
    )
    assert isinstance(answer, Reservation)
    return answer


async def ask(
    admission: Admission,
    caller: Principal,
    request_id: str | None = None,
    *,
    pictures: int = 1,
    lease_seconds: float = LEASE_SECONDS,
    idempotency: IdempotencyKey | None = None,
) -> Reservation | RenderedAnswer:
    return await admission.admit(
        caller,
        request_id=request_id or f"request-{next(_numbers)}",
        pictures=pictures,
        lease_seconds=lease_seconds,
        idempotency=idempotency,
    )


async def admitted(admission: Admission, caller: Principal, *, requests: int, pictures: int = 1) -> int:
    """How many of `requests` at once are let through; the rest must be refused for a limit of the key."""
    answers = await asyncio.gather(
        *(admit(admission, caller, pictures=pictures) for _ in range(requests)), return_exceptions=True
    )
    refused = [answer for answer in answers if not isinstance(answer, Reservation)]
    for refusal in refused:
        assert isinstance(refusal, LimitReached), refusal
    return requests - len(refused)


def event_of(reservation: Reservation, *, pictures: int | None = None) -> UsageEvent:
    """pictures: billed of those that were reserved; None is all."""
    return make_event(
        reservation.request_id,
        key_id=reservation.key_id,
        pictures=reservation.pictures if pictures is None else pictures,
        admitted_at=reservation.admitted_at,
    )


async def settle(
    accounts: Accounts,
    reservation: Reservation,
    *,
    pictures: int | None = None,
    answer: RenderedAnswer = ANSWER,
) -> None:
    await accounts.meter.settle(event_of(reservation, pictures=pictures), reservation, answer)
