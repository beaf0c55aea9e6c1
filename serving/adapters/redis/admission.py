"""Admission on Redis: one script a verb, on Redis' clock, for all gateways together."""

from __future__ import annotations

import asyncio
import functools
import logging
from datetime import UTC, datetime, timedelta
from typing import Any

from serving.adapters import answer_codec, limits
from serving.adapters.redis import keyspace
from serving.adapters.redis.client import Argument, RedisConnection
from serving.adapters.redis.scripts import CLOCK, Script
from serving.domain.idempotency import KEPT_SECONDS, IdempotencyKey
from serving.domain.inference import RenderedAnswer
from serving.domain.limits import LimitState
from serving.domain.tenant import Principal, Tier
from serving.errors import AccountsUnavailable, AnswerNotKept, IdempotencyKeyInUse, IdempotencyKeyReused
from serving.ports import Reservation

logger = logging.getLogger(__name__)

KEPT_MICROSECONDS = KEPT_SECONDS * limits.MICROSECONDS
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNLIMITED = -1


class RedisAdmission:
    """A request's lease bears its id. A request that is admitted again, while what it had reserved the time
    before is still there, gives that back to the quota first; its tokens are spent twice.
    """

    def __init__(self, connection: RedisConnection, *, clock: str = CLOCK) -> None:
        """clock: Lua that defines `now_microseconds()`."""
        self._connection = connection
        load = functools.partial(Script.load, clock=clock, shared=("account", "answers"))
        self._admit, self._answered_before = load("admit"), load("answered")
        self._give_back, self._limits = load("give_back"), load("limits")
        self._giving_back: set[asyncio.Task[None]] = set()

    async def admit(
        self,
        principal: Principal,
        *,
        request_id: str,
        pictures: int,
        lease_seconds: float,
        idempotency: IdempotencyKey | None = None,
    ) -> Reservation | RenderedAnswer:
        tier, key_id = principal.tier, principal.key_id
        limits.refuse_impossible(tier, pictures)
        keys = [*_account_and_epoch(key_id)]
        args: list[Argument] = [
            request_id,
            pictures,
            tier.rate_limit_per_minute,
            tier.burst,
            _UNLIMITED if tier.monthly_quota is None else tier.monthly_quota,
            _UNLIMITED if tier.max_concurrent_requests is None else tier.max_concurrent_requests,
            round(lease_seconds * limits.MICROSECONDS),
        ]
        if idempotency is not None:
            keys.append(keyspace.answer(key_id, idempotency))
            args += (idempotency.fingerprint, KEPT_MICROSECONDS)
        leave = functools.partial(self._give_back_later, key_id, request_id, idempotency)
        reply = await self._connection.run(self._admit, keys, args, if_abandoned=leave)
        if (answer := self._answered(reply)) is not None:
            return answer
        now, state = self._state(tier, reply, pictures)
        return Reservation(request_id, key_id, pictures, now, state, idempotency)

    async def answered(self, principal: Principal, idempotency: IdempotencyKey) -> RenderedAnswer | None:
        keys = [keyspace.answer(principal.key_id, idempotency)]
        reply = await self._connection.run(self._answered_before, keys, (idempotency.fingerprint,))
        return self._answered(reply)

    async def give_back(self, reservation: Reservation) -> None:
        await self._end(reservation.key_id, reservation.request_id, reservation.idempotency)

    async def limits(self, principal: Principal) -> LimitState:
        tier = principal.tier
        reply = await self._connection.run(
            self._limits, _account_and_epoch(principal.key_id), (tier.rate_limit_per_minute, tier.burst)
        )
        return self._state(tier, reply, pictures=0)[1]

    async def _end(self, key_id: str, request_id: str, idempotency: IdempotencyKey | None) -> None:
        keys = [keyspace.account(key_id)]
        if idempotency is not None:
            keys.append(keyspace.answer(key_id, idempotency))
        try:
            await self._connection.run(self._give_back, keys, (request_id,))
        except AccountsUnavailable as exc:
            logger.info("Request %s is not given back, and lapses: %s", request_id, exc)

    def _give_back_later(self, key_id: str, request_id: str, idempotency: IdempotencyKey | None) -> None:
        """The client left while it was being admitted: only now is it known that there is something."""
        task = asyncio.create_task(self._end(key_id, request_id, idempotency))
        self._giving_back.add(task)
        task.add_done_callback(self._giving_back.discard)

    @staticmethod
    def _answered(reply: Any) -> RenderedAnswer | None:
        match reply:
            case [b"answered", answer]:
                return answer_codec.decode(answer)
            case [b"in_use", microseconds]:
                left_seconds = microseconds / limits.MICROSECONDS
                raise IdempotencyKeyInUse(min(left_seconds, limits.ASK_AGAIN_SECONDS))
            case [b"not_kept"]:
                raise AnswerNotKept
            case [b"reused"]:
                raise IdempotencyKeyReused
        return None

    def _state(self, tier: Tier, reply: Any, pictures: int) -> tuple[datetime, LimitState]:
        if reply == [b"unprimed"]:
            raise self._connection.unprimed()
        status, now_us, level_units, used, leases = reply
        now = _EPOCH + timedelta(microseconds=now_us)
        state = limits.limit_state(tier, level_units=level_units, used=used, leases=leases, now=now)
        match status:
            case b"quota":
                raise limits.over_quota(tier, pictures, state)
            case b"rate":
                raise limits.over_rate(tier, pictures * limits.UNITS_PER_TOKEN - level_units, state)
            case b"concurrent":
                raise limits.over_concurrency(tier, state)
        return now, state


def _account_and_epoch(key_id: str) -> tuple[str, str]:
    return keyspace.account(key_id), keyspace.epoch(keyspace.partition_of(key_id))
