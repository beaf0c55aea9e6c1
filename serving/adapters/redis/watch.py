"""Whether Redis can be relied on: entered and left without anybody's help.

::

                any AccountsUnavailable, from a request or from a look
        ┌──────────────────────────────────────────────────────────────────┐
        │                                                                  ▼
    normal ── a look twice a second                    fallback ── a look four times a second
        ▲                                                                  │
        └── charge what was admitted here ◄── prime ◄── enough good looks ─┘
            then hand over the journal                  in a row

A look writes to every partition, and beats this gateway's heart. It is good where all of it has succeeded
within half of what a call may take. Fallback is left after two good looks in a row, that is, within a second
of the trouble's end. Who has to go back within ten seconds of a return asks for one more the next time, for
eight at most: a Redis that comes and goes is soon relied on no more often than every two seconds. Each time
costs those who ask it then one call's timeout, and never an error.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from serving.adapters.redis.pulse import Pulse
from serving.adapters.redis.trouble import unavailable
from serving.errors import AccountsUnavailable, BackendUnavailable
from serving.metrics import Metrics
from serving.ports import Clock

logger = logging.getLogger(__name__)

NORMAL_PAUSE_SECONDS = 0.5
FALLBACK_PAUSE_SECONDS = 0.25
PRIME_TIMEOUT_SECONDS = 60.0
FEWEST_GOOD_LOOKS = 2
MOST_GOOD_LOOKS = 8
LASTING_SECONDS = 10.0
"""A return that held for so long was no mistake."""

Look = Callable[[], Awaitable[Sequence[Pulse]]]
"""Write to all of Redis, and read how it is. Raises AccountsUnavailable."""
Prime = Callable[[], Awaitable[None]]
"""Take the counters of partitions without an epoch from the ledger. Raises BackendUnavailable."""
Charge = Callable[[], Awaitable[bool]]
"""Charge what this process has admitted by itself; whether there was anything. Raises AccountsUnavailable."""
HandOver = Callable[[], Awaitable[None]]
"""Hand over what is waiting in journals or was lost. Raises AccountsUnavailable, OSError."""
Follow = Callable[[Sequence[Pulse]], None]


class AccountsWatch:
    """Belongs to one event loop. `start`, then `run` in the background, then `close`."""

    def __init__(
        self,
        *,
        look: Look,
        prime: Prime,
        charge: Charge,
        hand_over: HandOver,
        follow: Follow,
        clock: Clock,
        metrics: Metrics,
        call_timeout_seconds: float,
    ) -> None:
        self._look = look
        self._prime = prime
        self._charge = charge
        self._hand_over = hand_over
        self._follow = follow
        self._clock = clock
        self._metrics = metrics
        self._slow_seconds = call_timeout_seconds / 2
        self._in_fallback = False
        self._good_looks = 0
        self._good_looks_needed = FEWEST_GOOD_LOOKS
        self._returned_at: float | None = None
        self._handing_over: asyncio.Task[None] | None = None
        self._trouble = asyncio.Event()

    @property
    def in_fallback(self) -> bool:
        return self._in_fallback

    def failed(self, error: AccountsUnavailable) -> None:
        """Redis cannot be relied on: from this moment on, nobody asks it.

        Not for a call that it has answered with an error of its own, which may be about one key's account: a
        look finds what is about all of them.
        """
        self._good_looks = 0
        if self._in_fallback:
            return
        now = self._clock.monotonic()
        lasted = self._returned_at is None or now - self._returned_at >= LASTING_SECONDS
        self._good_looks_needed = (
            FEWEST_GOOD_LOOKS if lasted else min(MOST_GOOD_LOOKS, self._good_looks_needed + 1)
        )
        self._in_fallback = True
        self._metrics.accounts_fallback.set(1)
        self._trouble.set()
        logger.error("accounts: %s; this gateway admits by its own share", error)

    async def start(self) -> None:
        """So that the first request already finds the state that is, of a new Redis too."""
        for _ in range(1 + FEWEST_GOOD_LOOKS):
            await self.step()
            if not self._in_fallback:
                break
        self._returned_at = None  # being primed for the first time is no trouble

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            self._trouble.clear()
            pause_seconds = FALLBACK_PAUSE_SECONDS if self._in_fallback else NORMAL_PAUSE_SECONDS
            try:
                async with asyncio.timeout(pause_seconds):
                    await self._trouble.wait()
            except TimeoutError:
                await self.step()

    async def step(self) -> None:
        """One look, and what follows from it."""
        try:
            began_at = self._clock.monotonic()
            pulses = await self._look()
            was_quick = self._clock.monotonic() - began_at <= self._slow_seconds
            if self._in_fallback:
                await self._consider_return(pulses, was_quick=was_quick)
            else:
                self._go_on(pulses)
        except AccountsUnavailable as error:
            self.failed(error)
        except BackendUnavailable as error:  # the ledger's: there is nothing to prime with
            logger.warning("accounts cannot be primed: %s", error)
        except Exception:
            logger.exception("accounts cannot be looked after")
            self.failed(unavailable("other"))

    async def close(self) -> None:
        """What is not handed over stays in the journal, for the next process."""
        if self._handing_over is not None:
            self._handing_over.cancel()
            await asyncio.gather(self._handing_over, return_exceptions=True)

    async def _consider_return(self, pulses: Sequence[Pulse], *, was_quick: bool) -> None:
        if any(pulse.epoch is None for pulse in pulses):
            async with asyncio.timeout(PRIME_TIMEOUT_SECONDS):
                await self._prime()
            pulses = await self._look()
        if not was_quick or any(pulse.epoch is None for pulse in pulses):
            self._good_looks = 0
            return
        self._good_looks += 1
        if self._good_looks < self._good_looks_needed:
            return
        admitted_here = await self._charge()
        if self._good_looks == 0:  # a call that had begun before has failed meanwhile
            return
        self._return(pulses)
        if admitted_here:
            await (
                self._charge()
            )  # what was admitted during the first charge, which others may have come in on

    def _return(self, pulses: Sequence[Pulse]) -> None:
        self._in_fallback = False
        self._good_looks = 0
        self._returned_at = self._clock.monotonic()
        self._metrics.accounts_fallback.set(0)
        logger.info("accounts: Redis is back")
        self._go_on(pulses)

    def _go_on(self, pulses: Sequence[Pulse]) -> None:
        if any(pulse.epoch is None for pulse in pulses):
            raise unavailable("unprimed")
        self._follow(pulses)
        if self._handing_over is None:
            self._handing_over = asyncio.create_task(self._hand_over_all())

    async def _hand_over_all(self) -> None:
        try:
            await self._hand_over()
        except AccountsUnavailable as error:
            if error.is_of_one_call:  # nothing that another look would not find
                logger.error("the journal cannot be handed over now: %s", error)  # noqa: TRY400 - Redis' own words are in the log
            else:
                self.failed(error)
        except Exception:
            logger.exception("the journal cannot be handed over now")
        finally:
            self._handing_over = None
