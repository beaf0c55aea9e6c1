"""What an operator changes counts on every gateway at once: a revoked key, an edited tier table."""

from __future__ import annotations

import time

from tests.support import fixed_box
from tests.support.chaos_terms import TIERS, tier_table
from tests.support.load import Answer, Books, Caller
from tests.support.site import Site

WITHIN_SECONDS = 1.0
TIERS_WITHIN_SECONDS = 5.0


async def asked_everywhere(site: Site, api_key: str) -> list[Answer]:
    """The answer of each gateway."""
    caller = Caller(api_key, fixed_box.NAME, fixed_box.picture(), Books())
    attempts = [await caller.ask(gateway) for gateway in site.gateways]
    caller.close()
    return [each.answer for each in attempts if each is not None and each.answer is not None]


async def test_a_revoked_key_stops_everywhere_within_a_second(site: Site) -> None:
    key = site.issue_key("unlimited")
    assert [answer.status for answer in await asked_everywhere(site, key.api_key)] == [200] * 4

    site.revoke_key(key.id)
    revoked = time.monotonic()
    codes = {"ok"}
    while codes != {"key_revoked"}:
        codes = {answer.code for answer in await asked_everywhere(site, key.api_key)}
        assert time.monotonic() - revoked < WITHIN_SECONDS, codes


async def test_a_key_that_is_revoked_while_redis_stands_still_stops_within_a_second(site: Site) -> None:
    """The push is lost with Redis; what the gateways look up by themselves is not."""
    key = site.issue_key("unlimited")
    assert [answer.status for answer in await asked_everywhere(site, key.api_key)] == [200] * 4

    site.redis.freeze()
    try:
        site.revoke_key(key.id)
        revoked = time.monotonic()
        codes = {"ok"}
        while codes != {"key_revoked"}:
            codes = {answer.code for answer in await asked_everywhere(site, key.api_key)}
            assert time.monotonic() - revoked < WITHIN_SECONDS, codes
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
