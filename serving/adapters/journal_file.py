"""One file of a journal: locked by the process that writes or replays it, on the disk before it says so."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

SUFFIX = ".journal"
DAMAGED_SUFFIX = ".damaged"
REFUSED_SUFFIX = ".refused"
_OWNER_ONLY = 0o600  # answers are in it
_ATTEMPTS = 16
_CLOSED = -1


class JournalFile:
    """Its methods block: call them in a thread. The lock ends with the process, however that ends."""

    def __init__(self, path: Path, descriptor: int, *, is_adopted: bool) -> None:
        self.path = path
        self.is_adopted = is_adopted
        self.size_bytes = os.fstat(descriptor).st_size
        self.lines = 0
        """That this process has written; as `size_bytes`, only what is surely on the disk counts."""
        self._descriptor = descriptor
        self._closing = threading.Lock()

    @classmethod
    def create(cls, folder: Path) -> Self:
        """Raises OSError."""
        if not folder.is_dir():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _sync_folder(folder.parent)
        for _ in range(_ATTEMPTS):
            path = folder / f"{os.getpid()}-{secrets.token_hex(8)}{SUFFIX}"
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, _OWNER_ONLY)
            # In the moment before it is locked, another process may take it for an orphan, and remove it.
            if _lock(path, descriptor):
                _sync_folder(folder)
                return cls(path, descriptor, is_adopted=False)
        raise OSError(f"no journal could be made in {_ATTEMPTS} attempts")

    @classmethod
    def adopt_orphans(cls, folder: Path) -> Iterator[Self]:
        """Those that no living process holds; each is ours from now on."""
        for path in sorted(folder.glob(f"*{SUFFIX}")):
            with contextlib.suppress(FileNotFoundError):
                descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
                if _lock(path, descriptor):
                    yield cls(path, descriptor, is_adopted=True)

    def append(self, lines: Sequence[bytes]) -> None:
        """Return when all are on the disk. Raises OSError; the file is then as it was, and takes no more."""
        data = b"".join(lines)
        try:
            _write_all(self._descriptor, data)
            os.fdatasync(self._descriptor)
        except OSError:
            # What failed to be synced once may seem to be the next time: this file is not trusted again.
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self.size_bytes)
                os.fdatasync(self._descriptor)
            raise
        self.size_bytes += len(data)
        self.lines += len(lines)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)  # an attempt before may have come as far as this
        self._let_go()

    def set_aside(self) -> None:
        """Keep it for a person to look at, where no process takes it for a journal."""
        with contextlib.suppress(FileNotFoundError):  # as above
            self.path.rename(self.path.with_suffix(DAMAGED_SUFFIX))
        self._let_go()

    def close(self) -> None:
        """Leave it to whoever adopts it. Closing twice is closing once: the number may be another file's by
        then, and a thread may still be about to remove it for a caller that was cancelled.
        """
        with self._closing:
            descriptor, self._descriptor = self._descriptor, _CLOSED
        if descriptor != _CLOSED:
            os.close(descriptor)

    def _let_go(self) -> None:
        _sync_folder(self.path.parent)
        self.close()


def add_line(path: Path, line: bytes) -> None:
    """To a file that no process takes for a journal; on the disk when it returns. Blocks; raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, _OWNER_ONLY)
    try:
        _write_all(descriptor, line)
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)
    _sync_folder(path.parent)


def _lock(path: Path, descriptor: int) -> bool:
    """Whether the file is ours, and is still what the path leads to; closed where it is not."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.stat().st_ino == os.fstat(descriptor).st_ino:
            return True
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)
    return False


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _sync_folder(folder: Path) -> None:
    """A name is on the disk once its folder is."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
