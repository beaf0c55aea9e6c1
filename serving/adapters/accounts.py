"""Keys' accounts as one gateway process has them: in Redis, and without it. Builds what belongs together."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from serving.adapters.fallback import FallbackAdmission, FallbackMeter
from serving.adapters.journal import Journal
from serving.adapters.ledger_usage import LedgerUsage, Read
from serving.adapters.local_accounts import LocalAccounts
from serving.adapters.redis.admission import RedisAdmission
from serving.adapters.redis.charges import BucketCharges
from serving.adapters.redis.client import RedisConnection
from serving.adapters.redis.gateways import LiveGateways
from serving.adapters.redis.meter import RedisMeter
from serving.adapters.redis.pulse import Pulse, PulseTaker
from serving.adapters.redis.retained import RetainedEvents, StreamEntries
from serving.adapters.redis.time import RedisTime
from serving.adapters.redis.watch import AccountsWatch, Prime
from serving.domain.month import Month
from serving.metrics import Metrics
from serving.ports import Clock


class Accounts:
    """Make it inside the event loop that will use it; `start`, then `run` in the background, then `close`."""

    def __init__(
        self,
        connection: RedisConnection,
        *,
        prime: Prime,
        used_by_ledger: Read,
        journal_folder: Path,
        clock: Clock,
        metrics: Metrics,
        call_timeout_seconds: float,
        expected_gateways: int,
        replicas_to_wait_for: int = 0,
    ) -> None:
        """connection: the caller closes it. call_timeout_seconds: the connection's own. expected_gateways:
        how many there are, until Redis says so.
        """
        self._connection = connection
        self._time = RedisTime(clock)
        self._gateways = LiveGateways(
            connection, clock, expected=expected_gateways, replicas=replicas_to_wait_for
        )
        self._pulses = PulseTaker(connection, replicas=replicas_to_wait_for)
        self._entries = StreamEntries(connection)
        self._journal = Journal(journal_folder, metrics)
        charges = BucketCharges(connection)
        retained = RetainedEvents(clock)
        ledger = LedgerUsage(used_by_ledger, month=lambda: Month.of(self._time.now()), clock=clock)
        local = LocalAccounts(
            clock,
            gateways=lambda: self._gateways.count,
            admitted_at=self._time.now,
            charges=charges,
            used_this_month=ledger.used_this_month,
        )
        self._watch = AccountsWatch(
            look=self._look,
            prime=prime,
            charge=charges.charge,
            hand_over=self._hand_over,
            follow=retained.follow,
            clock=clock,
            metrics=metrics,
            call_timeout_seconds=call_timeout_seconds,
        )
        self.admission = FallbackAdmission(RedisAdmission(connection), local, self._watch)
        self.meter = FallbackMeter(
            RedisMeter(connection, replicas_to_wait_for=replicas_to_wait_for),
            local,
            self._watch,
            journal=self._journal,
            retained=retained,
        )

    @property
    def in_fallback(self) -> bool:
        """Limits are this process' share of them, and usage is in its journal; all is served."""
        return self._watch.in_fallback

    async def start(self) -> None:
        """Return when the first request may come, whether Redis is there or not."""
        await self._watch.start()

    async def run(self) -> None:
        """Until it is cancelled."""
        await self._watch.run()

    async def close(self) -> None:
        """What Redis has not got by now stays in the journal, for the next process on this machine."""
        async with AsyncExitStack() as last_first:  # each of them, whatever becomes of the others
            last_first.push_async_callback(self._journal.close)
            last_first.push_async_callback(self._gateways.leave)
            last_first.push_async_callback(self._watch.close)

    async def _look(self) -> Sequence[Pulse]:
        # One call before the others: a Redis that is down fails one each time, and not as many as there are.
        await self._gateways.beat()
        pulses = await self._pulses.take()
        self._time.heard(max(pulse.now_microseconds for pulse in pulses))
        return pulses

    async def _hand_over(self) -> None:
        await self.admission.hand_over()
        await self.meter.hand_over(self._entries.absent)
