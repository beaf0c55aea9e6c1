"""Events that Redis has and the ledger may not have yet: kept until it has, for Redis may lose them.

A flush loses them, and so does a failover to a server that had not got them. Both show in a partition's
pulse, as another epoch or another run of its server. What was appended before that and is not in the stream
is appended again: it was lost, or the ledger has taken it since the last pulse, and knows it by its id.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from serving.adapters.journal_record import JournalRecord
from serving.adapters.redis import keyspace
from serving.adapters.redis.client import RedisConnection
from serving.adapters.redis.meter import Appended
from serving.adapters.redis.pulse import Pulse, StreamId, stream_id
from serving.adapters.redis.scripts import Script
from serving.ports import Clock

logger = logging.getLogger(__name__)

MAX_EVENTS = 16_384
MAX_SECONDS = 3600.0
MAX_ANSWERS_BYTES = 16 << 20
"""Bounds of a process' memory. What they mean: an event is lost for good where Redis loses it and the ledger
has not taken it, although it was appended an hour before, or 16 384 events before. A consumer that runs is a
fraction of a second behind. An answer beyond the bound is not given again to who repeats its request."""
CHUNK_EVENTS = 64

Append = Callable[[JournalRecord], Awaitable[object]]
Absent = Callable[[int, Sequence[StreamId]], Awaitable[set[StreamId]]]
"""Of a partition, which entries its stream has not got. Raises AccountsUnavailable."""


@dataclass(frozen=True, slots=True)
class _Retained:
    record: JournalRecord
    epoch: str
    kept_at: float

    @property
    def answer_bytes(self) -> int:
        return 0 if self.record.answer is None else len(self.record.answer.body)


@dataclass(slots=True)
class _Partition:
    """By stream id, oldest first, but for what overtook another on its way back to us."""

    pulse: Pulse | None = None
    events: OrderedDict[StreamId, _Retained] = field(default_factory=OrderedDict)
    doubtful: OrderedDict[StreamId, _Retained] = field(default_factory=OrderedDict)


class RetainedEvents:
    def __init__(self, clock: Clock, *, max_events: int = MAX_EVENTS) -> None:
        self._clock = clock
        self._max_events = max_events
        self._partitions = [_Partition() for _ in range(keyspace.PARTITIONS)]
        self._answers_bytes = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def keep(self, record: JournalRecord, appended: Appended) -> None:
        if record.answer is not None and self._answers_bytes + len(record.answer.body) > MAX_ANSWERS_BYTES:
            record = replace(record, answer=None, idempotency=None)
        partition = self._partitions[keyspace.partition_of(record.event.key_id)]
        retained = _Retained(record, appended.epoch, self._clock.monotonic())
        partition.events[stream_id(appended.stream_id)] = retained
        self._count += 1
        self._answers_bytes += retained.answer_bytes
        if self._count > self._max_events:
            longest = max(self._partitions, key=lambda each: len(each.events))
            self._forget_first(longest.events or next(p.doubtful for p in self._partitions if p.doubtful))

    def follow(self, pulses: Iterable[Pulse]) -> None:
        """Forget what the ledger has, and doubt what was appended to another epoch, or another server."""
        oldest_kept_at = self._clock.monotonic() - MAX_SECONDS
        for pulse in pulses:
            partition = self._partitions[pulse.partition]
            before, partition.pulse = partition.pulse, pulse
            events = partition.events
            if before is not None and (before.epoch, before.server) != (pulse.epoch, pulse.server):
                partition.doubtful.update(events)
                events.clear()
            while events and next(iter(events)) < pulse.consumed_below:
                id_, retained = events.popitem(last=False)
                if retained.epoch == pulse.epoch:
                    self._forget(retained)
                else:
                    partition.doubtful[id_] = retained
            for kept in (partition.doubtful, events):
                while kept and next(iter(kept.values())).kept_at < oldest_kept_at:
                    self._forget_first(kept)

    async def restore(self, append: Append, absent: Absent) -> int:
        """Append again what may have been lost; how many events. `append` is to `keep` what it appended.

        Raises AccountsUnavailable; what was not appended by then is still doubtful.
        """
        restored = 0
        for number, partition in enumerate(self._partitions):
            while chunk := list(islice(partition.doubtful.items(), CHUNK_EVENTS)):
                lost = await self._lost(number, chunk, absent)
                await asyncio.gather(*(append(retained.record) for id_, retained in chunk if id_ in lost))
                restored += len(lost)
                self._believe(partition, chunk, lost)
        if restored:
            logger.warning("%d events that Redis may have lost were appended again", restored)
        return restored

    async def _lost(
        self, number: int, chunk: Sequence[tuple[StreamId, _Retained]], absent: Absent
    ) -> set[StreamId]:
        pulse = self._partitions[number].pulse
        epoch = None if pulse is None else pulse.epoch
        of_this_epoch = [id_ for id_, retained in chunk if retained.epoch == epoch]
        lost = {id_ for id_, retained in chunk if retained.epoch != epoch}
        return lost | (await absent(number, of_this_epoch) if of_this_epoch else set())

    def _believe(
        self, partition: _Partition, chunk: Sequence[tuple[StreamId, _Retained]], lost: set[StreamId]
    ) -> None:
        for id_, retained in chunk:
            if partition.doubtful.pop(id_, None) is None:
                continue  # its time was over meanwhile
            if id_ in lost:
                self._forget(retained)
            else:
                partition.events[id_] = retained
                partition.events.move_to_end(id_, last=False)

    def _forget_first(self, kept: OrderedDict[StreamId, _Retained]) -> None:
        _, retained = kept.popitem(last=False)
        self._forget(retained)

    def _forget(self, retained: _Retained) -> None:
        self._count -= 1
        self._answers_bytes -= retained.answer_bytes


class StreamEntries:
    """Which entries the streams hold."""

    def __init__(self, connection: RedisConnection) -> None:
        self._connection = connection
        self._script = Script.load("absent")

    async def absent(self, partition: int, ids: Sequence[StreamId]) -> set[StreamId]:
        """Of `ids`, those that are not there. Raises AccountsUnavailable."""
        names = [f"{milliseconds}-{number}" for milliseconds, number in ids]
        reply = await self._connection.run(self._script, (keyspace.usage_stream(partition),), names)
        return {stream_id(name) for name in reply}
