"""What was admitted without asking Redis, until its buckets have been charged for it."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from serving.adapters.redis import keyspace
from serving.adapters.redis.client import Argument, RedisConnection
from serving.adapters.redis.scripts import CLOCK, Script
from serving.domain.tenant import Tier

logger = logging.getLogger(__name__)

MAX_KEYS = 100_000
"""The first to be charged is forgotten where there are more: by then its bucket has had time to fill."""
KEYS_AT_A_TIME = 64


@dataclass(frozen=True, slots=True)
class _Charge:
    key_id: str
    tier: Tier
    pictures: int


class BucketCharges:
    def __init__(self, connection: RedisConnection, *, clock: str = CLOCK) -> None:
        """clock: Lua that defines `now_microseconds()`."""
        self._connection = connection
        self._script = Script.load("charge", clock=clock, shared=("account",))
        self._owed: OrderedDict[str, _Charge] = OrderedDict()

    def add(self, key_id: str, tier: Tier, pictures: int) -> None:
        """Pictures were admitted here, by the key's own tier."""
        before = self._owed.get(key_id)
        self._owed[key_id] = _Charge(key_id, tier, pictures + (before.pictures if before else 0))
        if len(self._owed) > MAX_KEYS:
            self._owed.popitem(last=False)

    def take_back(self, key_id: str, pictures: int) -> None:
        """They were given back. What was charged already comes back with time, as tokens do."""
        charge = self._owed.pop(key_id, None)
        if charge is not None and charge.pictures > pictures:
            self._owed[key_id] = _Charge(key_id, charge.tier, charge.pictures - pictures)

    async def charge(self) -> bool:
        """Charge all that is owed; whether there was anything.

        Raises AccountsUnavailable: what Redis did not confirm is still owed, and may be charged twice. A key
        whose account is broken is let off: it keeps nobody else's from being charged.
        """
        owed, self._owed = self._owed, OrderedDict()
        replies = await asyncio.gather(*map(self._charge, _together(owed.values())), return_exceptions=True)
        for reply in replies:
            if isinstance(reply, BaseException):
                raise reply
        return bool(owed)

    async def _charge(self, charges: Sequence[_Charge]) -> None:
        partition = keyspace.partition_of(charges[0].key_id)
        keys = [keyspace.epoch(partition), *(keyspace.account(charge.key_id) for charge in charges)]
        args: list[Argument] = []
        for charge in charges:
            args += (charge.tier.rate_limit_per_minute, charge.tier.burst, charge.pictures)
        charged = False
        try:
            status, *broken = await self._connection.run(self._script, keys, args)
            charged = status == b"charged"
        finally:
            if not charged:
                for charge in charges:
                    self.add(charge.key_id, charge.tier, charge.pictures)
        if not charged:
            raise self._connection.unprimed()
        for number in broken:
            logger.error(
                "the account of key %s is broken: its bucket is not charged", charges[number - 1].key_id
            )


def _together(charges: Iterable[_Charge]) -> Iterator[Sequence[_Charge]]:
    """Those of one partition, so many at a time."""
    by_partition: dict[int, list[_Charge]] = defaultdict(list)
    for charge in charges:
        by_partition[keyspace.partition_of(charge.key_id)].append(charge)
    for some in by_partition.values():
        for begin in range(0, len(some), KEYS_AT_A_TIME):
            yield some[begin : begin + KEYS_AT_A_TIME]
