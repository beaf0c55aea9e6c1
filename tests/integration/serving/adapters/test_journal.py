"""Journals of processes that are killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry

from serving.adapters.journal import Journal
from serving.adapters.journal_record import JournalRecord, to_line
from serving.adapters.redis.client import RedisConnection
from serving.adapters.redis.meter import RedisMeter
from serving.domain.month import Month
from serving.metrics import Metrics
from tests.support.redis import DURABLE, prime, running_redis
from tests.support.traffic import Book, pictures_charged
from tests.support.usage_events import EVENT, make_event

ROOT = Path(__file__).parents[4]
PROCESS = [sys.executable, "-m", "tests.support.journal_process"]
ACKNOWLEDGED = 200


class Taken:
    def __init__(self) -> None:
        self.request_ids: list[str] = []

    async def __call__(self, records: Sequence[JournalRecord]) -> Sequence[JournalRecord]:
        self.request_ids += [record.event.request_id for record in records]
        return []


def writing(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([*PROCESS, "write", folder], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def exit_code_of(*command: str) -> int:
    return subprocess.run(command, cwd=ROOT, timeout=60, check=False).returncode


async def test_what_a_killed_process_had_acknowledged_is_all_there_once(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    with writing(folder) as writer:
        assert writer.stdout is not None
        acknowledged = [int(writer.stdout.readline()) for _ in range(ACKNOWLEDGED)]
        taken = Taken()
        journal = Journal(folder, Metrics(CollectorRegistry()))
        assert await journal.replay(taken) == 0  # it lives, and holds its file
        writer.kill()
        acknowledged += [int(line) for line in writer.stdout if line.endswith("\n")]
    await journal.replay(taken)
    await journal.close()
    assert len(taken.request_ids) == len(set(taken.request_ids))
    assert set(taken.request_ids) >= {f"req_{number}" for number in acknowledged}
    assert list(folder.iterdir()) == []


async def test_a_process_that_dies_between_handing_over_and_removing_bills_nobody_twice(
    tmp_path: Path,
) -> None:
    folder, events = tmp_path / "journal", 100
    folder.mkdir()
    lines = [to_line(JournalRecord(make_event(f"req_{number}"))) for number in range(events)]
    (folder / "1-dead.journal").write_bytes(b"".join(lines))
    metrics = Metrics(CollectorRegistry())
    with running_redis("redis-7", tmp_path / "redis", *DURABLE) as server, server.client() as client:
        prime(client)
        url = server.url.get_secret_value()
        assert exit_code_of(*PROCESS, "replay", str(folder), url) == -signal.SIGKILL
        month = Month.of(EVENT.admitted_at)
        assert pictures_charged(client, EVENT.key_id, month) == events

        connection = RedisConnection(server.url, timeout_seconds=10.0, metrics=metrics)
        meter, journal = RedisMeter(connection), Journal(folder, metrics)

        async def hand_over(records: Sequence[JournalRecord]) -> Sequence[JournalRecord]:
            for record in records:
                await meter.append(record.event, idempotency=None, answer=None)
            return []

        assert await journal.replay(hand_over) == events
        assert list(folder.iterdir()) == []
        assert pictures_charged(client, EVENT.key_id, month) == 2 * events
        book = Book(connection)
        await book.read_all()
        assert book.pictures == {f"req_{number}": 1 for number in range(events)}
        assert book.duplicates == events
        assert pictures_charged(client, EVENT.key_id, month) == events
        await journal.close()
        await connection.close()


async def test_memory_does_not_grow_with_the_journal(tmp_path: Path) -> None:
    async def peak_bytes(lines: int) -> int:
        folder = tmp_path / str(lines)
        folder.mkdir()
        with (folder / "1-dead.journal").open("wb") as file:
            for number in range(lines):
                file.write(to_line(JournalRecord(make_event(f"req_{number}"))))
        handed_over = 0

        async def hand_over(records: Sequence[JournalRecord]) -> Sequence[JournalRecord]:
            nonlocal handed_over
            handed_over += len(records)
            return []

        journal = Journal(folder, Metrics(CollectorRegistry()))
        tracemalloc.start()
        try:
            assert await journal.replay(hand_over) == handed_over == lines
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
            await journal.close()

    few = await peak_bytes(500)
    assert await peak_bytes(10_000) < 1.5 * few
