"""A tier table that is edited under a running gateway."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from serving.adapters.live_tiers import POLL_SECONDS, LiveTiers
from serving.errors import OperatorError
from serving.metrics import Metrics

ROW = """\
  {name}:
    rate_limit_per_minute: {rate}
    burst: 10
    monthly_quota: null
    max_pictures_per_request: 4
    max_concurrent_requests: 8
    priority: 2
    gpu: true
    price_per_1000: "0.10"
    price_per_month: "20"
"""
LOGGER = "serving.adapters.live_tiers"


def put(path: Path, text: str | None) -> None:
    """None: no file."""
    if text is None:
        path.unlink()
    else:
        path.write_text(text)


def table(**rates: int) -> str:
    return "tiers:\n" + "".join(ROW.format(name=name, rate=rate) for name, rate in rates.items())


class Clockwork:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self._ticks = asyncio.Semaphore(0)
        self._waiting = asyncio.Event()

    async def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self._waiting.set()
        await self._ticks.acquire()

    async def tick(self) -> None:
        """Let one wait end, and return once the next has begun."""
        await self._waiting.wait()
        self._waiting.clear()
        self._ticks.release()
        await asyncio.wait_for(self._waiting.wait(), 20)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "tiers.yaml"
    path.write_text(table(free=10, pro=100))
    return path


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry())


@pytest.fixture
def tiers(path: Path, metrics: Metrics) -> LiveTiers:
    return LiveTiers(path, metrics=metrics)


def failures(metrics: Metrics) -> float | None:
    return metrics.registry.get_sample_value("visiongate_tiers_reload_failures_total")


def rates(tiers: LiveTiers) -> dict[str, int]:
    return {name: tier.rate_limit_per_minute for name, tier in tiers.items()}


async def look_twice(tiers: LiveTiers) -> None:
    await tiers.refresh()
    await tiers.refresh()


def test_it_reads_like_the_table_it_was_made_of(tiers: LiveTiers, metrics: Metrics) -> None:
    assert rates(tiers) == {"free": 10, "pro": 100}
    assert (len(tiers), "free" in tiers, tiers.get("gold")) == (2, True, None)
    assert set(LiveTiers(None, metrics=metrics)) == {"free", "pro", "enterprise"}


@pytest.mark.parametrize("text", ["", "tiers: {}", None])
def test_at_the_start_there_is_no_last_good_table(path: Path, metrics: Metrics, text: str | None) -> None:
    put(path, text)

    with pytest.raises(OperatorError, match=r"tiers\.yaml"):
        LiveTiers(path, metrics=metrics)


def written_in_place(path: Path, text: str) -> None:
    path.write_text(text)


def renamed_over(path: Path, text: str) -> None:
    draft = path.with_suffix(".new")
    draft.write_text(text)
    draft.replace(path)


def removed_and_made_again(path: Path, text: str) -> None:
    path.unlink()
    path.write_text(text)


def within_a_tick_of_the_clock(path: Path, text: str) -> None:
    """As large as before, in the same inode, and at the same time, as far as the file system can tell."""
    before = path.stat()
    assert len(text) == before.st_size
    path.write_text(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    "change", [written_in_place, renamed_over, removed_and_made_again, within_a_tick_of_the_clock]
)
async def test_a_change_is_noticed_however_it_gets_there(
    path: Path, tiers: LiveTiers, change: object
) -> None:
    assert callable(change)
    change(path, table(free=20, pro=200))
    await look_twice(tiers)

    assert rates(tiers) == {"free": 20, "pro": 200}


async def test_kubernetes_swaps_a_link_two_steps_away(tmp_path: Path, metrics: Metrics) -> None:
    """A ConfigMap: the file is a link through `..data`, a link that is renamed over."""
    for number, rate in ((1, 10), (2, 20)):
        (tmp_path / f"..{number}").mkdir()
        (tmp_path / f"..{number}" / "tiers.yaml").write_text(table(free=rate))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "tiers.yaml").symlink_to("..data/tiers.yaml")
    tiers = LiveTiers(tmp_path / "tiers.yaml", metrics=metrics)

    (tmp_path / "..data_tmp").symlink_to("..2")
    (tmp_path / "..data_tmp").replace(tmp_path / "..data")
    await look_twice(tiers)

    assert rates(tiers) == {"free": 20}


async def test_what_is_still_being_written_is_not_taken_up(
    path: Path, tiers: LiveTiers, metrics: Metrics
) -> None:
    for text in ("", table(free=20), table(free=20, pro=200)):  # the second would be of use, too
        put(path, text)
        await tiers.refresh()
        assert rates(tiers) == {"free": 10, "pro": 100}
    await tiers.refresh()

    assert rates(tiers) == {"free": 20, "pro": 200}
    assert failures(metrics) == 0


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (table(free=0), "line 3, tiers.free.rate_limit_per_minute"),
        (table(free=20) + "    discount: 1\n", "line 12, tiers.free.discount"),
        ("", "the file is empty"),
        (None, "No such file"),
    ],
)
async def test_a_table_that_cannot_be_used_leaves_the_last_good_one_and_is_told_once(
    path: Path, metrics: Metrics, caplog: pytest.LogCaptureFixture, text: str | None, complaint: str
) -> None:
    tiers = LiveTiers(path, metrics=metrics)
    put(path, text)
    with caplog.at_level(logging.INFO, logger=LOGGER):
        for _ in range(5):
            await tiers.refresh()

    assert rates(tiers) == {"free": 10, "pro": 100}
    assert failures(metrics) == 1
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert complaint in record.getMessage()
    assert str(path) in record.getMessage()


async def test_each_change_for_the_worse_counts_and_a_good_one_is_taken_up_again(
    path: Path, tiers: LiveTiers, metrics: Metrics
) -> None:
    for text in ("tiers: {}", "tiers: []", "tiers: {}"):
        put(path, text)
        await look_twice(tiers)
    assert failures(metrics) == 3

    put(path, table(free=30, pro=300))
    await look_twice(tiers)
    assert rates(tiers) == {"free": 30, "pro": 300}
    assert failures(metrics) == 3


async def test_a_tier_that_is_left_out_stays_as_it_was_for_the_keys_in_it(
    path: Path, tiers: LiveTiers, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger=LOGGER):
        put(path, table(free=20, gold=500))
        await look_twice(tiers)
        put(path, table(free=30, gold=500))
        await look_twice(tiers)

    assert tiers["pro"].rate_limit_per_minute == 100
    assert tiers.get("pro") == tiers["pro"]
    assert rates(tiers) == {"free": 30, "gold": 500}  # so no new key gets into it
    assert ("pro" in tiers, len(tiers)) == (False, 2)
    assert failures(metrics) == 0
    assert ["no pro any more" in record.getMessage() for record in caplog.records] == [True, True]
    assert LiveTiers(path, metrics=metrics).get("pro") is None  # after a restart

    put(path, table(free=30, pro=70))
    await look_twice(tiers)
    assert rates(tiers) == {"free": 30, "pro": 70}
    assert tiers["gold"].rate_limit_per_minute == 500


async def test_what_a_request_began_with_does_not_change_under_it(path: Path, tiers: LiveTiers) -> None:
    begun = tiers["free"]
    put(path, table(free=20, pro=200))
    await look_twice(tiers)

    assert (begun.rate_limit_per_minute, tiers["free"].rate_limit_per_minute) == (10, 20)


async def test_it_goes_on_looking_whatever_goes_wrong(
    path: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    time = Clockwork()
    tiers = LiveTiers(path, metrics=metrics, wait=time.wait)
    running = asyncio.create_task(tiers.run())
    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR, logger=LOGGER):
        patch.setattr(asyncio, "to_thread", no_more_threads)
        await time.tick()
    assert "can't start new thread" in caplog.text

    put(path, table(free=20))
    for _ in range(2):
        await time.tick()
    assert rates(tiers) == {"free": 20}
    running.cancel()
    await asyncio.wait([running])


async def no_more_threads(*_: object) -> None:
    raise RuntimeError("can't start new thread")


async def test_it_looks_once_a_second_until_it_is_cancelled(path: Path, metrics: Metrics) -> None:
    time = Clockwork()
    tiers = LiveTiers(path, metrics=metrics, wait=time.wait)
    running = asyncio.create_task(tiers.run())
    put(path, "no table")
    for _ in range(2):
        await time.tick()
    put(path, table(free=20))
    await time.tick()
    assert rates(tiers)["free"] == 10
    await time.tick()
    assert rates(tiers)["free"] == 20
    assert failures(metrics) == 1

    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert time.waits == [POLL_SECONDS] * 5
