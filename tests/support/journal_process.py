"""Processes that write or replay a journal, to be killed while they do.

python journal_process.py write FOLDER           prints the number of each event once it is acknowledged
python journal_process.py replay FOLDER URL      hands all over to Redis, and dies before the file is removed
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from serving.adapters.journal import Journal
from serving.adapters.journal_file import JournalFile
from serving.adapters.journal_record import JournalRecord
from serving.adapters.redis.client import RedisConnection
from serving.adapters.redis.meter import RedisMeter
from serving.metrics import Metrics
from tests.support.usage_events import make_event

AT_A_TIME = 16


async def write(folder: Path) -> None:
    journal = Journal(folder, Metrics(CollectorRegistry()))

    async def append(number: int) -> None:
        await journal.append(JournalRecord(make_event(f"req_{number}")))
        print(number, flush=True)  # noqa: T201 - whoever started us reads it

    numbers = itertools.count()
    while True:
        await asyncio.gather(*(append(number) for number in itertools.islice(numbers, AT_A_TIME)))


async def replay(folder: Path, url: str) -> None:
    metrics = Metrics(CollectorRegistry())
    meter = RedisMeter(RedisConnection(SecretStr(url), timeout_seconds=10.0, metrics=metrics))

    async def hand_over(records: Sequence[JournalRecord]) -> Sequence[JournalRecord]:
        for record in records:
            await meter.append(record.event, idempotency=record.idempotency, answer=record.answer)
        return []

    def die(_: JournalFile) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(JournalFile, JournalFile.remove.__name__, die)  # the moment that the test is about
    await Journal(folder, metrics).replay(hand_over)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["write", folder]:
            asyncio.run(write(Path(folder)))
        case ["replay", folder, url]:
            asyncio.run(replay(Path(folder), url))
