"""Redis is gone, or stands still: no client hears of it, nobody gets a free ride, nothing is lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx
import pytest

from serving.adapters.redis.watch import LASTING_SECONDS
from tests.support import fixed_box
from tests.support.accounts import disagreements
from tests.support.chaos_terms import IS_LONG, SEED, TIERS
from tests.support.gateways import RedisProcess
from tests.support.ledger import await_settled, read_ledger
from tests.support.load import Load
from tests.support.site import Site, seconds_until

OUTAGE_SECONDS = 30.0 if IS_LONG else 4.0
WITHIN_SECONDS = 1.0
TOLERANCE = 0.10
TIER = "steady"
RATE_PER_SECOND = int(str(TIERS[TIER]["rate_limit_per_minute"])) / 60
CLIENTS = 12
PAUSE_SECONDS = 0.1
"""Of each client, between requests: together they ask for three times what the tier gives."""


@dataclass(frozen=True)
class Outage:
    """entered_seconds, left_seconds: until the last gateway had noticed. admitted: from begin to end."""

    seconds: float
    entered_seconds: float
    left_seconds: float
    admitted: int
    readiness: list[httpx.Response]


@pytest.mark.timeout(120 + 4 * (OUTAGE_SECONDS + LASTING_SECONDS))
async def test_an_outage_of_redis_is_no_outage_and_no_free_ride(site: Site) -> None:
    before = await read_ledger(site)
    load = Load(
        site.gateways,
        [site.issue_key(TIER).api_key],
        fixed_box.NAME,
        fixed_box.picture(),
        clients=CLIENTS,
        seed=SEED,
        pause_seconds=PAUSE_SECONDS,
        idempotent=False,
    )
    outages = []
    async with load:
        for leave, come_back in ((kill, start_again), (RedisProcess.freeze, RedisProcess.thaw)):
            # A gateway believes in a Redis that has just come back less readily.
            await asyncio.sleep(LASTING_SECONDS)
            outages.append(await outage(site, load, leave, come_back))
    await await_settled(site)

    assert load.books.statuses().keys() == {200, 429}
    assert not load.books.broken()
    for each in outages:
        assert max(each.entered_seconds, each.left_seconds) <= WITHIN_SECONDS, each
        assert {answer.status_code for answer in each.readiness} == {200}, "it can serve without Redis"
        assert all(answer.json()["degraded"] for answer in each.readiness)
        expected = RATE_PER_SECOND * each.seconds
        assert (1 - TOLERANCE) * expected <= each.admitted <= (1 + TOLERANCE) * expected, each
    ledger = [entry for entry in await read_ledger(site) if entry not in set(before)]
    assert not disagreements(load.books, ledger)
    reconciled = await asyncio.to_thread(site.command, "usage", "reconcile")
    assert reconciled.returncode == 0, reconciled.stdout + reconciled.stderr


async def outage(
    site: Site, load: Load, leave: Callable[[RedisProcess], None], come_back: Callable[[RedisProcess], None]
) -> Outage:
    began = time.monotonic()
    leave(site.redis)
    entered = await seconds_until(
        lambda: in_fallback(site) == len(site.gateways), "on their own", within_seconds=5
    )
    readiness = await asyncio.to_thread(lambda: [gateway.readiness() for gateway in site.gateways])
    await asyncio.sleep(began + OUTAGE_SECONDS - time.monotonic())
    await asyncio.to_thread(come_back, site.redis)
    left = await seconds_until(lambda: in_fallback(site) == 0, "back to Redis", within_seconds=10)
    ended = time.monotonic()
    admitted = sum(began <= attempt.began < ended for attempt, _ in load.books.answered())
    return Outage(ended - began, entered, left, admitted, readiness)


def kill(redis: RedisProcess) -> None:
    redis.kill()


def start_again(redis: RedisProcess) -> None:
    redis.start()
    redis.await_ready()


def in_fallback(site: Site) -> int:
    return round(sum(gateway.series("visiongate_accounts_fallback") for gateway in site.gateways))
