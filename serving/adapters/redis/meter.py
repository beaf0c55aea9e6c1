"""Metering on Redis: a billed answer is in the usage stream, on Redis' disk, before it leaves."""

from __future__ import annotations

from dataclasses import dataclass

from serving.adapters import answer_codec, usage_codec
from serving.adapters.limits import ASK_AGAIN_SECONDS
from serving.adapters.redis import keyspace
from serving.adapters.redis.admission import KEPT_MICROSECONDS
from serving.adapters.redis.client import Argument, RedisConnection
from serving.adapters.redis.scripts import CLOCK, Script
from serving.domain.idempotency import IdempotencyKey
from serving.domain.inference import RenderedAnswer
from serving.domain.usage import UsageEvent
from serving.errors import IdempotencyKeyInUse
from serving.ports import Reservation

KEPT_ANSWERS_BYTES = 32 << 20
"""Of one API key's kept answers, compressed, together."""


@dataclass(frozen=True, slots=True)
class Appended:
    """Where an event is now. epoch: of its partition; another epoch later means that Redis was flushed."""

    epoch: str
    stream_id: str


class RedisMeter:
    def __init__(
        self,
        connection: RedisConnection,
        *,
        replicas_to_wait_for: int = 0,
        kept_answers_bytes: int = KEPT_ANSWERS_BYTES,
        clock: str = CLOCK,
    ) -> None:
        """kept_answers_bytes: of one API key. clock: Lua that defines `now_microseconds()`."""
        self._connection = connection
        self._replicas = replicas_to_wait_for
        self._kept_answers_bytes = kept_answers_bytes
        self._settle = Script.load("settle", clock=clock, shared=("account",))

    async def settle(self, event: UsageEvent, reservation: Reservation, answer: RenderedAnswer) -> None:
        """Besides the port's errors, IdempotencyKeyInUse: see `append`.

        An event that is settled twice is charged twice, until the consumer finds the second entry.
        """
        await self.append(event, idempotency=reservation.idempotency, answer=answer, only_owner=True)

    async def append(
        self,
        event: UsageEvent,
        *,
        idempotency: IdempotencyKey | None,
        answer: RenderedAnswer | None,
        only_owner: bool = False,
    ) -> Appended:
        """The lease of the event's request becomes the entry; where there is none, its month is charged anew.

        The answer is kept for 24 hours under the idempotency key, or that there was one, where the API key's
        kept answers take all of their room. Where another request has taken that over,
        for this one's lease had lapsed, its answer is the one to have: with `only_owner`, for what has not
        been sent to the client yet, IdempotencyKeyInUse is raised, and nothing billed; without, for what has
        been, it is billed too. Raises AccountsUnavailable.
        """
        partition = keyspace.partition_of(event.key_id)
        keys = [
            keyspace.account(event.key_id),
            keyspace.usage_stream(partition),
            keyspace.epoch(partition),
        ]
        args: list[Argument] = [
            event.request_id,
            str(event.month),
            event.pictures,
            usage_codec.encode(event),
        ]
        if idempotency is not None and answer is not None:
            keys += (keyspace.answer(event.key_id, idempotency), keyspace.kept_answers(event.key_id))
            args += (int(only_owner), idempotency.fingerprint, answer_codec.encode(answer))
            args += (KEPT_MICROSECONDS, self._kept_answers_bytes)
        reply = await self._connection.run(self._settle, keys, args, replicas=self._replicas)
        match reply:
            case [b"appended", epoch, stream_id]:
                return Appended(epoch.decode(), stream_id.decode())
            case [b"superseded"]:
                raise IdempotencyKeyInUse(ASK_AGAIN_SECONDS)
        raise self._connection.unprimed()
