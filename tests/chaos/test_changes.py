"""What an operator changes counts on every gateway at once: a revoked key, an edited tier table."""

from __future__ import annotations

import asyncio
import time

from tests.support import fixed_box
from tests.support.chaos_terms import TIERS, tier_table
from tests.support.load import Attempt, Books, Caller
from tests.support.site import IssuedKey, Site

WITHIN_SECONDS = 1.0
TIERS_WITHIN_SECONDS = 5.0


async def asked_everywhere(site: Site, api_key: str) -> list[Attempt]:
    """Of each gateway one, answered."""
    caller = Caller(api_key, fixed_box.NAME, fixed_box.picture(), Books())
    attempts = [await caller.ask(gateway) for gateway in site.gateways]
    caller.close()
    return [each for each in attempts if each is not None and each.answer is not None]


async def assert_works_everywhere(site: Site, key: IssuedKey) -> None:
    asked = await asked_everywhere(site, key.api_key)
    assert [each.answer.status for each in asked if each.answer] == [200] * 4


async def assert_stops_everywhere_within_a_second(site: Site, key: IssuedKey) -> None:
    """Of the moment at which the command was given: however long it takes itself."""
    given = time.monotonic()
    revoking = asyncio.create_task(asyncio.to_thread(site.revoke_key, key.id))
    codes = {"ok"}
    while codes != {"key_revoked"}:
        asked = await asked_everywhere(site, key.api_key)
        codes = {each.answer.code for each in asked if each.answer}
        late = [each for each in asked if each.answer and each.began - given >= WITHIN_SECONDS]
        assert {each.answer.code for each in late if each.answer} <= {"key_revoked"}
    await revoking


async def test_a_revoked_key_stops_everywhere_within_a_second(site: Site) -> None:
    key = site.issue_key("unlimited")
    await assert_works_everywhere(site, key)

    await assert_stops_everywhere_within_a_second(site, key)


async def test_a_key_that_is_revoked_while_redis_stands_still_stops_within_a_second(site: Site) -> None:
    """The push is lost with Redis; what the gateways look up by themselves is not."""
    key = site.issue_key("unlimited")
    await assert_works_everywhere(site, key)

    site.redis.freeze()
    try:
        await assert_stops_everywhere_within_a_second(site, key)
    finally:
        site.redis.thaw()


async def test_an_edited_tier_table_counts_without_a_restart(site: Site) -> None:
    """Three pictures more than the old limit: refused by it, answered by the new one."""
    api_key = site.issue_key("edited").api_key

    async def statuses() -> set[int]:
        caller = Caller(api_key, fixed_box.NAME, fixed_box.picture(), Books(), pictures=4)
        attempts = [await caller.ask(gateway) for gateway in site.gateways]
        caller.close()
        return {each.answer.status for each in attempts if each is not None and each.answer is not None}

    assert await statuses() == {422}  # one picture a request, says the tier
    edited = time.monotonic()
    site.edit_tiers(tier_table(edited=TIERS["edited"] | {"max_pictures_per_request": 4}))
    try:
        while await statuses() != {200}:
            assert time.monotonic() - edited < TIERS_WITHIN_SECONDS
    finally:
        site.edit_tiers(tier_table())
