from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from serving.adapters import journal_record
from serving.adapters.journal import APPEND_TIMEOUT_SECONDS, CHUNK_RECORDS, TRIES, Journal
from serving.adapters.journal_file import JournalFile
from serving.adapters.journal_record import JournalRecord, to_line
from serving.errors import AccountsUnavailable
from serving.metrics import Metrics
from serving.pipeline import LEASE_GRACE_SECONDS
from serving.settings import MAX_REDIS_TIMEOUT_SECONDS
from tests.support.usage_events import make_event


def record(number: int) -> JournalRecord:
    return JournalRecord(make_event(f"req_{number}"))


class Taker:
    """Takes what is handed over; while `failures` last, it takes nothing."""

    def __init__(self, *, failures: int = 0, after: int = 0) -> None:
        self.records: list[JournalRecord] = []
        self.chunks: list[int] = []
        self._failures = failures
        self._after = after

    async def __call__(self, records: Sequence[JournalRecord]) -> Sequence[JournalRecord]:
        if self._failures and len(self.chunks) == self._after:
            self._failures -= 1
            raise AccountsUnavailable("gone again")
        self.records.extend(records)
        self.chunks.append(len(records))
        return []


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry())


@pytest.fixture
async def journal(tmp_path: Path, metrics: Metrics) -> AsyncIterator[Journal]:
    journal = Journal(tmp_path / "journal", metrics)
    yield journal
    await journal.close()


def files(tmp_path: Path, suffix: str = "") -> list[str]:
    folder = tmp_path / "journal"
    return sorted(path.name for path in folder.glob(f"*{suffix}")) if folder.exists() else []


def sample(metrics: Metrics, name: str) -> float | None:
    return metrics.registry.get_sample_value(f"visiongate_{name}")


async def test_nothing_written_makes_no_file_and_replays_nothing(journal: Journal, tmp_path: Path) -> None:
    assert await journal.replay(Taker()) == 0
    assert files(tmp_path) == []


async def test_what_was_written_is_replayed_once_in_chunks_and_its_file_goes(
    journal: Journal, tmp_path: Path, metrics: Metrics
) -> None:
    records = [record(number) for number in range(CHUNK_RECORDS + 5)]
    await asyncio.gather(*map(journal.append, records))
    assert len(files(tmp_path)) == 1
    assert sample(metrics, "journal_events") == len(records)
    taker = Taker()
    assert await journal.replay(taker) == len(records)
    assert taker.records == records
    assert taker.chunks == [CHUNK_RECORDS, 5]
    assert files(tmp_path) == []
    assert sample(metrics, "journal_events") == 0
    assert sample(metrics, "journal_replayed_total") == len(records)
    assert await journal.replay(Taker()) == 0


async def test_an_acknowledged_record_is_in_the_file(journal: Journal, tmp_path: Path) -> None:
    await journal.append(record(1))
    (name,) = files(tmp_path)
    path = tmp_path / "journal" / name
    assert path.read_bytes() == to_line(record(1))
    assert path.stat().st_mode & 0o777 == 0o600


async def test_records_that_come_together_share_one_sync(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    sync = os.fdatasync

    def counted(descriptor: int) -> None:
        sync(descriptor)
        synced.append(descriptor)

    monkeypatch.setattr(os, "fdatasync", counted)
    await asyncio.gather(*(journal.append(record(number)) for number in range(100)))
    assert len(synced) == 1


async def test_nobody_is_told_before_the_sync_is_over(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end = threading.Event(), threading.Event()
    sync = os.fdatasync

    def slow(descriptor: int) -> None:
        begun.set()
        may_end.wait(20)
        sync(descriptor)

    monkeypatch.setattr(os, "fdatasync", slow)
    append = asyncio.create_task(journal.append(record(1)))
    await asyncio.to_thread(begun.wait, 20)
    assert not append.done()
    may_end.set()
    await append


async def test_a_replay_that_was_broken_off_goes_on_where_it_was(journal: Journal, tmp_path: Path) -> None:
    records = [record(number) for number in range(2 * CHUNK_RECORDS)]
    await asyncio.gather(*map(journal.append, records))
    taker = Taker(failures=1, after=1)
    with pytest.raises(AccountsUnavailable):
        await journal.replay(taker)
    assert journal.events == CHUNK_RECORDS
    assert len(files(tmp_path)) == 1
    await journal.append(record(999))
    assert await journal.replay(taker) == CHUNK_RECORDS + 1
    assert taker.records == [*records, record(999)]
    assert files(tmp_path) == []


@pytest.mark.parametrize("failing", ["write", "fdatasync"])
async def test_a_record_that_was_refused_is_never_replayed_and_the_next_one_is(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    await journal.append(record(1))
    real: Callable[..., int] = getattr(os, failing)

    def half_then_full(descriptor: int, *data: bytes) -> int:
        if data:
            os.pwrite(descriptor, data[0][:20], 1 << 20)
            os.ftruncate(descriptor, 1 << 19)
        raise OSError(errno.ENOSPC, "the disk is full")

    monkeypatch.setattr(os, failing, half_then_full)
    with pytest.raises(AccountsUnavailable):
        await journal.append(record(2))
    monkeypatch.setattr(os, failing, real)
    await journal.append(record(3))
    taker = Taker()
    await journal.replay(taker)
    assert taker.records == [record(1), record(3)]
    assert files(tmp_path) == []


async def test_a_full_disk_leaves_no_empty_files(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "the disk is full")

    monkeypatch.setattr(os, "write", full)
    for number in range(3):
        with pytest.raises(AccountsUnavailable):
            await journal.append(record(number))
    assert files(tmp_path) == []


async def test_a_folder_that_cannot_be_written_refuses(tmp_path: Path, metrics: Metrics) -> None:
    (tmp_path / "journal").write_text("a file is in the way")
    journal = Journal(tmp_path / "journal", metrics)
    with pytest.raises(AccountsUnavailable):
        await journal.append(record(1))
    await journal.close()


async def test_bounds_refuse_before_anything_is_written(
    tmp_path: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    room_for_two = 2 * len(to_line(record(1)))
    journal = Journal(tmp_path / "journal", metrics, max_bytes=room_for_two)
    await journal.append(record(1))
    await journal.append(record(2))
    with pytest.raises(AccountsUnavailable, match="full"):
        await journal.append(record(3))
    await journal.replay(Taker())
    await journal.append(record(3))
    monkeypatch.setattr("serving.adapters.journal.MAX_LINE_BYTES", 100)
    with pytest.raises(AccountsUnavailable, match="too long"):
        await journal.append(record(4))
    await journal.close()


async def test_a_disk_that_hangs_refuses_and_what_waited_behind_it_is_not_written(
    tmp_path: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_end = threading.Event()
    begun = threading.Event()
    sync = os.fdatasync

    def slow(descriptor: int) -> None:
        begun.set()
        may_end.wait(20)
        sync(descriptor)

    monkeypatch.setattr(os, "fdatasync", slow)
    journal = Journal(tmp_path / "journal", metrics, append_timeout_seconds=0.05)
    first = asyncio.create_task(journal.append(record(1)))
    await asyncio.to_thread(begun.wait, 20)
    with pytest.raises(AccountsUnavailable, match="slow"):
        await journal.append(record(2))
    with pytest.raises(AccountsUnavailable, match="slow"):
        await first
    may_end.set()
    await journal.close()
    (name,) = files(tmp_path)
    assert (tmp_path / "journal" / name).read_bytes() == to_line(record(1))


async def test_damage_is_set_aside_with_everything_readable_handed_over(
    journal: Journal, tmp_path: Path, metrics: Metrics
) -> None:
    folder = tmp_path / "journal"
    folder.mkdir()
    content = to_line(record(1)) + b"rubbish\n" + to_line(record(2))
    (folder / "0-dead.journal").write_bytes(content)
    taker = Taker()
    assert await journal.replay(taker) == 2
    assert taker.records == [record(1), record(2)]
    assert files(tmp_path) == ["0-dead.damaged"]
    assert (folder / "0-dead.damaged").read_bytes() == content
    assert sample(metrics, "journal_damaged_lines_total") == 1
    assert await journal.replay(taker) == 0


async def test_what_a_crash_cut_short_is_dropped_without_a_word(
    journal: Journal, tmp_path: Path, metrics: Metrics
) -> None:
    folder = tmp_path / "journal"
    folder.mkdir()
    (folder / "0-dead.journal").write_bytes(to_line(record(1)) + to_line(record(2))[:-1])
    taker = Taker()
    await journal.replay(taker)
    assert taker.records == [record(1)]
    assert files(tmp_path) == []
    assert sample(metrics, "journal_damaged_lines_total") == 0


async def test_a_journal_that_somebody_holds_is_not_an_orphan(
    journal: Journal, tmp_path: Path, metrics: Metrics
) -> None:
    other = Journal(tmp_path / "journal", metrics)
    await other.append(record(1))
    taker = Taker()
    assert await journal.replay(taker) == 0
    await other.close()
    assert await journal.replay(taker) == 1
    assert taker.records == [record(1)]


def test_a_file_that_is_taken_for_an_orphan_as_it_is_made_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adopted: list[JournalFile] = []
    make = os.open

    def overtaken(path: Path, flags: int, mode: int = 0o777) -> int:
        descriptor = make(path, flags, mode)
        if flags & os.O_CREAT and len(adopted) < 2:
            monkeypatch.setattr(os, "open", make)
            adopted.extend(JournalFile.adopt_orphans(tmp_path))
            monkeypatch.setattr(os, "open", overtaken)
            if len(adopted) == 2:
                adopted[1].remove()
        return descriptor

    monkeypatch.setattr(os, "open", overtaken)
    file = JournalFile.create(tmp_path)
    assert len(adopted) == 2
    file.append([b"line\n"])
    assert file.path.read_bytes() == b"line\n"
    assert file.path not in {each.path for each in adopted}
    file.remove()
    adopted[0].remove()


async def test_one_file_that_cannot_be_read_does_not_keep_back_the_others(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "journal"
    folder.mkdir()
    for number in (1, 2):
        (folder / f"{number}-dead.journal").write_bytes(to_line(record(number)))
    read = journal_record.JournalReader.read

    def broken(reader: journal_record.JournalReader, **bounds: int) -> list[JournalRecord]:
        if reader.path.name.startswith("1"):
            raise OSError(errno.EIO, "a bad sector")
        return read(reader, **bounds)

    monkeypatch.setattr(journal_record.JournalReader, "read", broken)
    taker = Taker()
    for _ in range(2):
        with pytest.raises(OSError, match="bad sector"):
            await journal.replay(taker)
    assert taker.records == [record(2)]
    assert files(tmp_path) == ["1-dead.journal"]


class Refuser:
    """Takes all but one event."""

    def __init__(self, refused: str) -> None:
        self.request_ids: list[str] = []
        self._refused = refused

    async def __call__(self, records: Sequence[JournalRecord]) -> Sequence[JournalRecord]:
        self.request_ids += [record.event.request_id for record in records]
        return [record for record in records if record.event.request_id == self._refused]


async def test_an_event_that_is_refused_lets_the_others_past_and_is_set_aside_in_the_end(
    journal: Journal, tmp_path: Path, metrics: Metrics
) -> None:
    for number in (1, 2, 3):
        await journal.append(record(number))
    refuser = Refuser("req_1")
    assert await journal.replay(refuser) == 2
    for _ in range(TRIES - 2):
        assert sample(metrics, "journal_events") == 1
        assert await journal.replay(refuser) == 0
    assert files(tmp_path, ".refused") == []
    await journal.replay(refuser)
    assert refuser.request_ids == ["req_1", "req_2", "req_3", *["req_1"] * (TRIES - 1)]
    (name,) = files(tmp_path)
    path = tmp_path / "journal" / name
    assert path.suffix == ".refused"
    assert path.read_bytes() == to_line(record(1))
    assert path.stat().st_mode & 0o777 == 0o600
    assert sample(metrics, "journal_refused_total") == 1
    assert sample(metrics, "journal_replayed_total") == 2
    assert sample(metrics, "journal_events") == 0
    path.rename(path.with_suffix(".journal"))
    taker = Taker()
    await journal.replay(taker)
    assert taker.records == [record(1)]
    assert files(tmp_path) == []


async def test_an_event_that_is_taken_at_last_has_all_its_tries_again(
    journal: Journal, tmp_path: Path
) -> None:
    for _ in range(2):
        await journal.append(record(1))
        for _ in range(TRIES - 1):
            await journal.replay(Refuser("req_1"))
        assert await journal.replay(Taker()) == 1
    assert files(tmp_path) == []


@pytest.mark.parametrize("end", [JournalFile.close, JournalFile.remove, JournalFile.set_aside])
def test_a_file_that_is_ended_twice_leaves_alone_who_has_its_number_now(
    tmp_path: Path, end: Callable[[JournalFile], None]
) -> None:
    """As at a shutdown, which closes what a thread is about to remove."""
    (tmp_path / "other").touch()
    file = JournalFile.create(tmp_path)
    number = file._descriptor
    file.close()
    with (tmp_path / "other").open("rb") as other:
        assert other.fileno() == number
        end(file)
        assert os.fstat(number).st_ino == (tmp_path / "other").stat().st_ino


def test_a_lease_outlasts_the_settlement_of_a_request_that_met_its_deadline() -> None:
    assert MAX_REDIS_TIMEOUT_SECONDS + APPEND_TIMEOUT_SECONDS < LEASE_GRACE_SECONDS
