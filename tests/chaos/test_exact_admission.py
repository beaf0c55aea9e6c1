"""Two hundred clients at once, four gateways, one key: what the tier says is let through, to the picture."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from tests.support import fixed_box
from tests.support.gateways import GatewayProcess
from tests.support.load import Books, Caller, ask_together
from tests.support.site import REQUEST_TIMEOUT_SECONDS, Site, seconds_until

CLIENTS = 200


@contextmanager
def calling(site: Site, tier: str, books: Books, *, pictures: int = 1) -> Iterator[list[Caller]]:
    """All with one new key."""
    api_key, picture = site.issue_key(tier).api_key, fixed_box.picture()
    callers = [Caller(api_key, fixed_box.NAME, picture, books, pictures=pictures) for _ in range(CLIENTS)]
    try:
        yield callers
    finally:
        for caller in callers:
            caller.close()


def gateways_in_turn(site: Site) -> list[GatewayProcess]:
    return [site.gateways[number % len(site.gateways)] for number in range(CLIENTS)]


@pytest.mark.parametrize(
    ("tier", "pictures", "admitted", "refused_as"),
    [
        ("burst-1", 1, 1, "rate_limited"),  # the smallest bucket
        ("burst-64", 1, 64, "rate_limited"),
        ("burst-64", 3, 21, "rate_limited"),  # the last token is not enough for a whole batch
        ("burst-64", 16, 4, "rate_limited"),
        ("burst-137", 1, 137, "rate_limited"),
        ("burst-199", 2, 99, "rate_limited"),
        ("quota-73", 1, 73, "quota_exceeded"),
        ("quota-73", 4, 18, "quota_exceeded"),  # the quota ends inside the nineteenth batch
        ("unlimited", 1, 200, ""),
    ],
)
async def test_four_gateways_let_through_what_one_would(
    site: Site, tier: str, pictures: int, admitted: int, refused_as: str | None
) -> None:
    with calling(site, tier, Books(), pictures=pictures) as callers:
        answers = await ask_together(list(zip(callers, gateways_in_turn(site), strict=True)))

    expected = Counter({(200, "ok"): admitted, (429, refused_as): CLIENTS - admitted})
    assert Counter((answer.status, answer.code) for answer in answers) == +expected


async def test_no_more_requests_are_under_way_at_once_than_the_tier_allows(
    site: Site, triton_processes: list[psutil.Process]
) -> None:
    """Triton stands still while all ask, so whoever is admitted stays so until all others were refused."""
    most, books = 5, Books()

    def all_others_are_refused() -> bool:
        return books.statuses() == {429: CLIENTS - most}

    with calling(site, "five-at-once", books) as callers:
        for process in triton_processes:
            process.suspend()
        try:
            asking = asyncio.create_task(
                ask_together(list(zip(callers, gateways_in_turn(site), strict=True)))
            )
            await seconds_until(all_others_are_refused, "refused", within_seconds=REQUEST_TIMEOUT_SECONDS)
        finally:
            for process in triton_processes:
                process.resume()
        answers = await asking
        again = await asyncio.gather(*(caller.ask(site.gateways[0]) for caller in callers[:most]))

    assert Counter(answer.status for answer in answers) == {200: most, 429: CLIENTS - most}
    assert [each.is_answered for each in again if each is not None] == [True] * most  # places are free again
