"""`kill -9` of whatever, whenever, under load: what clients saw is what the ledger has, once."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

import pytest

from tests.support import fixed_box
from tests.support.accounts import disagreements
from tests.support.chaos_terms import IS_LONG, SEED
from tests.support.ledger import await_settled, read_ledger
from tests.support.load import Books, Load
from tests.support.programs import Program
from tests.support.site import Site, seconds_until

ROUNDS = 200 if IS_LONG else 8
LONGEST_SECONDS = 3600 if IS_LONG else 120
CLIENTS = 16
KEYS = 8
PAUSE_SECONDS = (0.1, 1.2)
"""Between a victim's return and the next kill."""


@dataclass
class Killer:
    """under_way: trace ids of what a gateway had when it was killed."""

    site: Site
    books: Books
    rng: random.Random
    under_way: set[str] = field(default_factory=set)
    victims: list[str] = field(default_factory=list)

    async def strike(self, rounds: int) -> None:
        """Each kind about equally often, gateways twice as often, in a random order."""
        kinds = (self._gateway, self._gateway, self._meter, self._redis, self._postgresql)
        course = [kinds[number % len(kinds)] for number in range(rounds)]
        self.rng.shuffle(course)
        for kill in course:
            await asyncio.sleep(self.rng.uniform(*PAUSE_SECONDS))
            await kill()

    async def _gateway(self) -> None:
        victim = self.rng.choice(self.site.gateways)
        self.under_way |= {each.trace_id for each in self.books.under_way() if each.port == victim.port}
        await self._kill(victim)

    async def _meter(self) -> None:
        await self._kill(self.site.meter)

    async def _redis(self) -> None:
        await self._kill(self.site.redis)

    async def _postgresql(self) -> None:
        assert self.site.postgresql is not None
        self.victims.append("postgresql")
        await asyncio.to_thread(self.site.postgresql.kill)
        await asyncio.to_thread(self.site.postgresql.start)

    async def _kill(self, victim: Program) -> None:
        self.victims.append(victim.name)
        victim.kill()  # in the clients' own loop: nothing is sent between the look at the books and the blow
        victim.start()
        await asyncio.to_thread(victim.await_ready)


@pytest.mark.timeout(LONGEST_SECONDS)
async def test_what_clients_saw_is_in_the_ledger_once_whatever_is_killed(site: Site) -> None:
    before = await read_ledger(site)
    api_keys = [site.issue_key("unlimited").api_key for _ in range(KEYS)]
    load = Load(site.gateways, api_keys, fixed_box.NAME, fixed_box.picture(), clients=CLIENTS, seed=SEED)
    killer = Killer(site, load.books, random.Random(SEED))
    async with load:
        await killer.strike(ROUNDS)
    await await_settled(site)

    ledger = [entry for entry in await read_ledger(site) if entry not in set(before)]
    found = disagreements(load.books, ledger, under_way_at_kills=killer.under_way)
    assert not found, f"seed {SEED}, killed {killer.victims}:\n" + "\n".join(found[:20])
    assert load.books.statuses()[200] > 10 * ROUNDS, load.books.statuses()
    reconciled = await asyncio.to_thread(site.command, "usage", "reconcile")
    assert reconciled.returncode == 0, reconciled.stdout + reconciled.stderr


async def test_settlement_after_the_answer_is_found_out(site: Site) -> None:
    """The test above can fail: a gateway that answers first and settles then is caught by its first kill."""
    late = site.new_gateway(len(site.gateways), "late")
    before = await read_ledger(site)
    api_keys = [site.issue_key("unlimited").api_key]
    late.start()
    try:
        await asyncio.to_thread(late.await_ready)
        targets = [late, late, late, *site.gateways]  # there are some to insist at when it is gone
        load = Load(targets, api_keys, fixed_box.NAME, fixed_box.picture(), clients=CLIENTS, seed=SEED)
        async with load:
            await seconds_until(lambda: load.books.statuses().get(200, 0) > 100, "busy", within_seconds=30)
            late.kill()
    finally:
        late.kill()
    await await_settled(site)

    ledger = [entry for entry in await read_ledger(site) if entry not in set(before)]
    found = disagreements(load.books, ledger)
    assert any("is in the ledger 0 times" in each for each in found), found
