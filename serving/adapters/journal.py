"""What was used while Redis could not be told: on the disk of this machine, until Redis has it.

A journal is a folder that the processes of a machine share; each writes files of its own. A file is replayed
by whoever holds its lock: the process that wrote it, or, after that one's end, any other. It goes once all of
it has been handed over; who is killed between the two leaves it to be handed over again, and that is
harmless, for the ledger knows an event by its id.

An event that Redis refuses while all else is well (its key's account is broken) goes to the end of the queue,
so that the others get past it, and after `TRIES` into a file of its own, `….refused`. That is as any journal
is, and becomes one again when a person who has mended the account renames it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from serving.adapters.journal_file import REFUSED_SUFFIX, JournalFile, add_line
from serving.adapters.journal_record import MAX_LINE_BYTES, JournalReader, JournalRecord, to_line
from serving.adapters.journal_writer import JournalWriter
from serving.errors import AccountsUnavailable
from serving.metrics import Metrics

logger = logging.getLogger(__name__)

MAX_BYTES = 4 << 30
"""Of what this process has written and not handed over: some eight million events."""
APPEND_TIMEOUT_SECONDS = 3.0
TRIES = 20
"""Of an event that is refused; a look apart, which is half a second."""
CHUNK_RECORDS = 64
CHUNK_BYTES = 1 << 20

HandOver = Callable[[Sequence[JournalRecord]], Awaitable[Sequence[JournalRecord]]]
"""Tells Redis of some records, and answers which of them it refused; raises where it is in trouble itself.
What it was told before, it may be told again.
"""


class _Replay:
    """One file on its way to Redis, and how far it has got."""

    def __init__(self, file: JournalFile) -> None:
        self.file = file
        self.events_left = file.lines
        self._reader = JournalReader(file.path, end_bytes=None if file.is_adopted else file.size_bytes)
        self._chunk: list[JournalRecord] = []

    async def chunk(self) -> list[JournalRecord]:
        """The next one, the same until it is `done`; empty at the end."""
        if not self._chunk:
            self._chunk = await asyncio.to_thread(
                self._reader.read, records=CHUNK_RECORDS, about_bytes=CHUNK_BYTES
            )
        return self._chunk

    def done(self) -> None:
        self.events_left = max(0, self.events_left - len(self._chunk))
        self._chunk = []

    async def end(self) -> int:
        """Remove the file, or set it aside where some of it cannot be read; how many lines those are."""
        damaged = self._reader.damaged_lines
        await asyncio.to_thread(self.file.set_aside if damaged else self.file.remove)
        self.events_left = 0
        return damaged


class Journal:
    """Belongs to one event loop. A process that has nothing to write makes no file."""

    def __init__(
        self,
        folder: Path,
        metrics: Metrics,
        *,
        max_bytes: int = MAX_BYTES,
        append_timeout_seconds: float = APPEND_TIMEOUT_SECONDS,
    ) -> None:
        self._folder = folder
        self._metrics = metrics
        self._max_bytes = max_bytes
        self._writer = JournalWriter(folder, timeout_seconds=append_timeout_seconds)
        self._replays: deque[_Replay] = deque()
        self._refusals: Counter[str] = Counter()
        """By request id, of events that are still to be tried again."""
        metrics.journal_events.set_function(lambda: self.events)

    @property
    def events(self) -> int:
        """Written by this process and not handed over."""
        return self._writer.held_lines + sum(each.events_left for each in self._replays)

    async def append(self, record: JournalRecord) -> None:
        """Return when it is on the disk.

        Raises AccountsUnavailable where it is not, and will not be: the disk is full or broken, or a bound is
        reached; but of a disk that takes longer than the timeout nobody can tell.
        """
        line = to_line(record)
        if len(line) > MAX_LINE_BYTES:
            raise AccountsUnavailable("The answer is too long for the journal.")
        own = (each.file for each in self._replays if not each.file.is_adopted)
        if self._writer.held_bytes + sum(file.size_bytes for file in own) + len(line) > self._max_bytes:
            raise AccountsUnavailable("The journal is full.")
        await self._writer.append(line)

    async def replay(self, hand_over: HandOver) -> int:
        """Hand over all that is there now, of this process and of those that have ended; how many events.

        Raises what `hand_over` raises, and OSError; goes on from there the next time. For one at a time.
        """
        self._replays.extend(_Replay(file) for file in await self._writer.seal())
        self._replays.extend(_Replay(file) for file in await asyncio.to_thread(self._adopt))
        handed_over = 0
        while self._replays:
            try:
                handed_over += await self._replay(self._replays[0], hand_over)
            except OSError:
                self._replays.rotate(-1)  # one file that cannot be read does not keep back the others
                raise
            self._replays.popleft()
        return handed_over

    async def close(self) -> None:
        """What waits is still written; what is left is for the next process."""
        await self._writer.close()
        for each in self._replays:
            each.file.close()
        self._replays.clear()

    def _adopt(self) -> list[JournalFile]:
        files = list(JournalFile.adopt_orphans(self._folder))
        for file in files:
            logger.info("adopting the journal %s, whose process has ended", file.path.name)
        return files

    async def _replay(self, replay: _Replay, hand_over: HandOver) -> int:
        handed_over = 0
        while chunk := await replay.chunk():
            refused = await hand_over(chunk)
            for request_id in _ids(chunk) - _ids(refused):
                self._refusals.pop(request_id, None)
            for record in refused:
                await self._try_later(record, replay.file)
            replay.done()
            handed_over += len(chunk) - len(refused)
            self._metrics.journal_replayed.inc(len(chunk) - len(refused))
        if damaged := await replay.end():
            self._metrics.journal_damaged.inc(damaged)
            logger.error("%d lines of the journal %s are damaged", damaged, replay.file.path.name)
        return handed_over

    async def _try_later(self, record: JournalRecord, file: JournalFile) -> None:
        """It is on the disk elsewhere before its file goes."""
        request_id, line = record.event.request_id, to_line(record)
        self._refusals[request_id] += 1
        if self._refusals[request_id] < TRIES:
            await self._writer.append(line)
            return
        path = file.path.with_suffix(REFUSED_SUFFIX)
        await asyncio.to_thread(add_line, path, line)
        del self._refusals[request_id]
        self._metrics.journal_refused.inc()
        logger.error(
            "Redis refuses the event of request %s, of key %s: it is set aside in %s",
            request_id,
            record.event.key_id,
            path.name,
        )


def _ids(records: Sequence[JournalRecord]) -> set[str]:
    return {record.event.request_id for record in records}
