"""Group commit: lines that arrive together go to the disk together, and their writers wait for that."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from serving.adapters.journal_file import JournalFile
from serving.errors import AccountsUnavailable

logger = logging.getLogger(__name__)

MAX_WAITING_BYTES = 64 << 20


@dataclass(eq=False, slots=True)
class _Waiting:
    line: bytes
    written: asyncio.Future[None]


class JournalWriter:
    """Belongs to one event loop; its one thread alone touches the file that is being written.

    held_lines, held_bytes: on the disk, in files that `seal` has not returned yet.
    """

    def __init__(self, folder: Path, *, timeout_seconds: float) -> None:
        self.held_lines = 0
        self.held_bytes = 0
        self._folder = folder
        self._timeout_seconds = timeout_seconds
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._waiting: deque[_Waiting] = deque()
        self._waiting_bytes = 0
        self._writing: asyncio.Task[None] | None = None
        self._file: JournalFile | None = None
        self._ended: list[JournalFile] = []

    async def append(self, line: bytes) -> None:
        """Return when it is on the disk.

        Raises AccountsUnavailable where it is not, and will not be; but of a disk that takes longer than the
        timeout nobody can tell.
        """
        if self._waiting_bytes + len(line) > MAX_WAITING_BYTES:
            raise AccountsUnavailable("The journal's queue is full.")
        entry = _Waiting(line, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        self._waiting_bytes += len(line)
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_what_waits())
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await entry.written
        except TimeoutError as exc:
            raise AccountsUnavailable("The journal's disk is too slow.") from exc

    async def seal(self) -> list[JournalFile]:
        """The files written so far, which take nothing more: the next line begins another."""
        files = await asyncio.get_running_loop().run_in_executor(self._thread, self._take_files)
        self.held_lines -= sum(file.lines for file in files)
        self.held_bytes -= sum(file.size_bytes for file in files)
        return files

    async def close(self) -> None:
        """What waits is still written; the files are left to whoever adopts them."""
        while self._writing is not None:
            await asyncio.wait([self._writing])
        for file in await self.seal():
            file.close()
        self._thread.shutdown()

    async def _write_what_waits(self) -> None:
        try:
            while self._waiting:
                await self._write_together(self._take_waiting())
        finally:
            self._writing = None

    def _take_waiting(self) -> list[_Waiting]:
        """Without those that nobody waits for any more: their requests have failed, and are not billed."""
        entries = [entry for entry in self._waiting if not entry.written.done()]
        self._waiting.clear()
        self._waiting_bytes = 0
        return entries

    async def _write_together(self, entries: list[_Waiting]) -> None:
        lines = [entry.line for entry in entries]
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._write, lines)
        except OSError as exc:
            logger.error("the journal cannot be written: %s", exc)  # noqa: TRY400 - each caller has its trace
            for entry in entries:
                if not entry.written.done():
                    entry.written.set_exception(AccountsUnavailable("The journal cannot be written."))
            return
        self.held_lines += len(lines)
        self.held_bytes += sum(map(len, lines))
        for entry in entries:
            if not entry.written.done():
                entry.written.set_result(None)

    def _write(self, lines: list[bytes]) -> None:
        if self._file is None:
            self._file = JournalFile.create(self._folder)
        try:
            self._file.append(lines)
        except OSError:
            file, self._file = self._file, None
            if file.size_bytes == 0:
                file.remove()
            else:
                self._ended.append(file)
            raise

    def _take_files(self) -> list[JournalFile]:
        files = self._ended if self._file is None else [*self._ended, self._file]
        self._ended, self._file = [], None
        return files
