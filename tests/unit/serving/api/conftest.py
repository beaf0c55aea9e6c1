"""One gateway in process for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from serving.adapters.sql.database import Database
from serving.adapters.sql.ledger import LedgerEntry, SqlLedger
from serving.domain.tenant import Tier
from serving.domain.usage import UsageEvent
from tests.support.tiers import make_tier
from tests.support.world import World, encode, running_world


@pytest.fixture
def tier() -> Tier:
    return make_tier()


@pytest.fixture
async def world(tier: Tier) -> AsyncIterator[World]:
    async with running_world(tier) as world:
        yield world


class Bills:
    """The real ledger on SQLite, and what a consumer would bring it."""

    def __init__(self, ledger: SqlLedger) -> None:
        self.ledger = ledger
        self._recorded = 0

    async def record(self, *events: UsageEvent) -> None:
        entries = [LedgerEntry(event, f"{self._recorded + nth}-0") for nth, event in enumerate(events)]
        self._recorded += len(entries)
        assert set(await self.ledger.record(entries)) == {"new"}


@pytest.fixture
async def bills(tier: Tier, tmp_path: Path) -> AsyncIterator[Bills]:
    database = Database(f"sqlite:///{tmp_path}/ledger.db")
    try:
        yield Bills(SqlLedger(database, {tier.name: tier}))
    finally:
        await database.close()


@pytest.fixture
async def billing_world(tier: Tier, bills: Bills) -> AsyncIterator[World]:
    async with running_world(tier, ledger=bills.ledger) as world:
        yield world


@pytest.fixture
def jpeg() -> bytes:
    """128 x 64 pixels, all white."""
    return encode(np.full((64, 128, 3), 255, np.uint8))


@pytest.fixture
def dark_png() -> bytes:
    """64 x 64 pixels, all black."""
    return encode(np.zeros((64, 64, 3), np.uint8), ".png")
