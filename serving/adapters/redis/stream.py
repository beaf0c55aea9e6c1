"""The stream of usage events as its consumers see it: all partitions, read and acknowledged together."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from serving.adapters.redis import keyspace
from serving.adapters.redis.client import Argument, RedisConnection
from serving.adapters.redis.entries import StreamEntry, decoded
from serving.adapters.redis.keyspace import LEDGER_GROUP, PARTITIONS
from serving.adapters.redis.scripts import Script
from serving.adapters.usage_codec import LaterForm
from serving.domain.usage import Verdict
from serving.errors import AccountsUnavailable

logger = logging.getLogger(__name__)

ENTRIES_PER_PARTITION = 256
CLAIM_IDLE_SECONDS = 5.0
FORGET_IDLE_SECONDS = 300.0

READ = Script.load("read")
CLAIM = Script.load("claim")
ACKNOWLEDGE = Script.load("acknowledge")
SET_ASIDE = Script.load("set_aside")
FORGET_CONSUMERS = Script.load("forget_consumers")
BACKLOG = Script.load("backlog")

FROM_THE_OLDEST = "-"


@dataclass(frozen=True, slots=True)
class Reading:
    """set_aside: entries that could not be decoded, and are out of the way now. unanswered: partitions.

    later: entries of a later form. They stay where they are, for a newer consumer to claim.
    """

    entries: Sequence[StreamEntry]
    set_aside: int = 0
    later: int = 0
    unanswered: int = 0


@dataclass(frozen=True, slots=True)
class Handled:
    """An entry whose event the ledger has. Where it is a duplicate, its charge goes back."""

    entry: StreamEntry
    verdict: Verdict


@dataclass(slots=True)
class Acknowledgement:
    """gone: was not there any more: acknowledged before, or flushed, and its charge with it.

    unanswered: is to be acknowledged again, for Redis did not say.
    """

    gone: list[Handled] = field(default_factory=list)
    unanswered: list[Handled] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Backlog:
    """lag_seconds: age of the oldest entry, 0 where there is none. poison: entries in the side streams."""

    entries: int
    lag_seconds: float
    poison: int


class RedisUsageStream:
    """For one consumer of the group.

    A node of a cluster that does not answer holds up its own partitions, and no others; AccountsUnavailable
    is raised where none answers.
    """

    def __init__(
        self,
        connection: RedisConnection,
        *,
        consumer: str,
        entries_per_partition: int = ENTRIES_PER_PARTITION,
        claim_idle_seconds: float = CLAIM_IDLE_SECONDS,
    ) -> None:
        """consumer: a name that no other process has, now or later."""
        self._connection = connection
        self._consumer = consumer
        self._limit = entries_per_partition
        self._claim_idle_milliseconds = round(claim_idle_seconds * 1000)
        self._claim_from = [FROM_THE_OLDEST] * PARTITIONS

    async def read(self) -> Reading:
        """What nobody was handed yet, at most `entries_per_partition` of each."""
        args = (LEDGER_GROUP, self._consumer, self._limit)
        return await self._decoded(await self._ask_all(READ, [args] * PARTITIONS))

    async def claim(self) -> Reading:
        """What some consumer, this one too, was handed long ago and has not acknowledged.

        Of each partition at most `entries_per_partition`, from where the last time ended: what stays there
        because nobody can read it yet keeps nobody from what is behind it.
        """
        always = (LEDGER_GROUP, self._consumer, self._claim_idle_milliseconds, self._limit)
        answers = await self._ask_all(CLAIM, [(*always, begin) for begin in self._claim_from])
        for partition, (next_begin, _) in answers.items():
            self._claim_from[partition] = next_begin.decode()
        return await self._decoded({partition: entries for partition, (_, entries) in answers.items()})

    async def acknowledge(self, handled: Sequence[Handled]) -> Acknowledgement:
        """Never raises: what is unanswered says it."""
        by_partition: dict[int, list[Handled]] = defaultdict(list)
        for each in handled:
            by_partition[each.entry.partition].append(each)
        result = Acknowledgement()
        await asyncio.gather(*(self._acknowledge(p, some, result) for p, some in by_partition.items()))
        return result

    async def backlog(self) -> Backlog:
        """Of the partitions that answer."""
        answers = await self._ask_all(BACKLOG, [()] * PARTITIONS, with_poison=True)
        entries, ages_microseconds, poison = zip(*answers.values(), strict=True)
        return Backlog(sum(entries), max(ages_microseconds) / 1_000_000, sum(poison))

    async def forget_dead_consumers(self) -> None:
        args = (LEDGER_GROUP, round(FORGET_IDLE_SECONDS * 1000))
        await self._ask_all(FORGET_CONSUMERS, [args] * PARTITIONS)

    async def _ask_all(
        self, script: Script, args: Iterable[Sequence[Argument]], *, with_poison: bool = False
    ) -> Mapping[int, Any]:
        """By partition, as `args` is, without those that do not answer."""
        answers = await asyncio.gather(
            *(
                self._connection.run(script, _streams(partition, with_poison=with_poison), each)
                for partition, each in enumerate(args)
            ),
            return_exceptions=True,
        )
        failures = [answer for answer in answers if isinstance(answer, BaseException)]
        for failure in failures:
            if len(failures) == PARTITIONS or not isinstance(failure, AccountsUnavailable):
                raise failure
        return {p: answer for p, answer in enumerate(answers) if not isinstance(answer, BaseException)}

    async def _decoded(self, answers: Mapping[int, Any]) -> Reading:
        entries: list[StreamEntry] = []
        set_aside = later = 0
        for partition, answer in answers.items():
            poison = []
            for raw in answer:
                try:
                    entries.append(decoded(partition, raw))
                except LaterForm:
                    later += 1
                except ValueError as exc:
                    logger.warning("entry %s of partition %d is no usage event: %s", raw[0], partition, exc)
                    poison.append(raw[0])
            if poison:
                set_aside += await self._set_aside(partition, poison)
        return Reading(entries, set_aside, later, PARTITIONS - len(answers))

    async def _set_aside(self, partition: int, ids: Sequence[bytes]) -> int:
        keys = _streams(partition, with_poison=True)
        try:
            moved = await self._connection.run(SET_ASIDE, keys, [LEDGER_GROUP, *ids])
        except AccountsUnavailable:
            return 0  # they are claimed again, with what else was not acknowledged
        return int(moved)

    async def _acknowledge(self, partition: int, handled: Sequence[Handled], result: Acknowledgement) -> None:
        keys = [keyspace.usage_stream(partition)]
        args: list[Argument] = [LEDGER_GROUP]
        for each in handled:
            event = each.entry.event
            place = 0
            if each.verdict == "duplicate":
                keys.append(keyspace.account(event.key_id))
                place = len(keys)
            args += (each.entry.entry_id, place, keyspace.used_field(event.month), event.pictures)
        try:
            removed = await self._connection.run(ACKNOWLEDGE, keys, args)
        except AccountsUnavailable:
            result.unanswered += handled
            return
        result.gone += (each for each, was_there in zip(handled, removed, strict=True) if not was_there)


def _streams(partition: int, *, with_poison: bool) -> Sequence[str]:
    usage = keyspace.usage_stream(partition)
    return [usage, keyspace.poison_stream(partition)] if with_poison else [usage]
