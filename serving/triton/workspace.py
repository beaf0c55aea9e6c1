"""A folder of its own for one run of a server, and a name for its shared memory, both gone when it ends.

Where a run is killed, nobody tidies up. So each folder holds a lock that the kernel releases with its owner,
and the next run removes what no longer has one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from serving.errors import OperatorError

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lives on Linux, not a temporary file
_PREFIX = "visiongate-triton-"


def default_parent() -> Path:
    return Path(tempfile.gettempdir()) / f"visiongate-{os.getuid()}"


class Workspace:
    def __init__(self, parent: Path) -> None:
        """Raises OperatorError where `parent` cannot be used, or belongs to somebody else."""
        with _only_one_at_a_time(parent):
            _remove_what_has_no_owner(parent)
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)

    @property
    def shared_memory_prefix(self) -> str:
        """Begins the name of every shared-memory region of this run, and of no other run's."""
        return f"{self.path.name}-"

    def clear_shared_memory(self) -> None:
        _clear_shared_memory(self.shared_memory_prefix)

    def close(self) -> None:
        self.clear_shared_memory()
        shutil.rmtree(self.path)
        os.close(self._lock)


@contextlib.contextmanager
def _only_one_at_a_time(parent: Path) -> Iterator[None]:
    try:
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if parent.stat().st_uid != os.getuid():
            raise OperatorError(f"{parent} belongs to another user; choose another folder to run Triton in.")
        lock = os.open(parent / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as exc:
        raise OperatorError(f"{parent} cannot be used to run Triton in: {exc.strerror}.") from exc
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _remove_what_has_no_owner(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*"):
        if not _is_owned(folder):
            _clear_shared_memory(f"{folder.name}-")
            shutil.rmtree(folder, ignore_errors=True)


def _is_owned(folder: Path) -> bool:
    try:
        lock = os.open(folder / "lock", os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def _clear_shared_memory(prefix: str) -> None:
    for region in SHARED_MEMORY.glob(f"{prefix}*"):
        region.unlink(missing_ok=True)
