from __future__ import annotations

import asyncio

import pytest

from serving.adapters import ledger_usage
from serving.adapters.ledger_usage import MOST_AT_A_TIME, PAUSE_SECONDS, LedgerUsage
from serving.adapters.memory.clock import ManualClock
from serving.domain.month import Month
from serving.errors import BackendUnavailable

NOVEMBER = Month(2026, 11)


class Ledger:
    """Answers 7 for every key, once it may."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Month]] = []
        self.trouble: Exception | None = None
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.has_been_asked = asyncio.Event()

    async def read(self, key_id: str, month: Month) -> int:
        self.asked.append((key_id, month))
        self.has_been_asked.set()
        await self.may_answer.wait()
        if self.trouble is not None:
            raise self.trouble
        return 7


@pytest.fixture
async def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def usage(ledger: Ledger, clock: ManualClock) -> LedgerUsage:
    return LedgerUsage(ledger.read, month=lambda: NOVEMBER, clock=clock)


async def test_requests_of_one_key_ask_once_together(usage: LedgerUsage, ledger: Ledger) -> None:
    assert await asyncio.gather(*(usage.used_this_month("key_1") for _ in range(5))) == [7] * 5
    assert ledger.asked == [("key_1", NOVEMBER)]
    assert await usage.used_this_month("key_1") == 7
    assert len(ledger.asked) == 2


async def test_who_leaves_does_not_take_the_answer_from_the_others(
    usage: LedgerUsage, ledger: Ledger
) -> None:
    ledger.may_answer.clear()
    leaves, stays = (asyncio.create_task(usage.used_this_month("key_1")) for _ in range(2))
    await ledger.has_been_asked.wait()
    leaves.cancel()
    await asyncio.gather(leaves, return_exceptions=True)
    ledger.may_answer.set()
    assert await stays == 7


async def test_few_keys_are_asked_for_at_a_time(usage: LedgerUsage, ledger: Ledger) -> None:
    ledger.may_answer.clear()
    asking = [asyncio.create_task(usage.used_this_month(f"key_{number}")) for number in range(20)]
    await ledger.has_been_asked.wait()
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(ledger.asked) == MOST_AT_A_TIME
    ledger.may_answer.set()
    assert await asyncio.gather(*asking) == [7] * 20


@pytest.mark.parametrize("trouble", [BackendUnavailable("no database"), RuntimeError("a mistake")])
async def test_a_ledger_that_is_gone_is_left_alone_for_a_while(
    usage: LedgerUsage, ledger: Ledger, clock: ManualClock, trouble: Exception
) -> None:
    ledger.trouble = trouble
    assert [await usage.used_this_month(f"key_{number}") for number in range(3)] == [None] * 3
    assert len(ledger.asked) == 1
    ledger.trouble = None
    clock.advance(PAUSE_SECONDS)
    assert await usage.used_this_month("key_1") == 7


async def test_a_ledger_that_is_slow_is_not_waited_for(
    usage: LedgerUsage, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_usage, "TIMEOUT_SECONDS", 0.01)
    ledger.may_answer.clear()
    assert await usage.used_this_month("key_1") is None
    assert await usage.used_this_month("key_2") is None
    assert len(ledger.asked) == 1
