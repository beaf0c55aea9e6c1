"""Slots of POSIX shared memory, for batches that another process on this machine reads where they lie.

One file in `/dev/shm`, made once, holds all the slots. Its owner keeps a lock on it that the kernel releases
with the process, however that ends; the next owner of slots removes files whose lock nobody holds.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import mmap
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_LOGGER = logging.getLogger(__name__)
_FOLDER = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lives on Linux, not a temporary file
_PREFIX = "visiongate-batches-"


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """memory: (slot_bytes,) uint8, writable, with what its last user left in it."""

    number: int
    memory: NDArray[np.uint8]


class SharedSlots:
    """For one thread. The slot that came back last leaves first, so that as few pages as possible are hot."""

    def __init__(self, *, slots: int, slot_bytes: int, folder: Path = _FOLDER) -> None:
        """Raises OSError where there is no room for them."""
        _remove_what_has_no_owner(folder)
        self._path, self._file = _new_locked_file(folder)
        try:
            # Room that is promised but not there would end a process by SIGBUS when it writes.
            os.posix_fallocate(self._file, 0, slots * slot_bytes)
            # All pages at once: none of them is to be found and mapped while somebody waits for an answer.
            memory = mmap.mmap(self._file, slots * slot_bytes, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        except OSError:
            self._remove_file()
            raise
        self._bytes = np.frombuffer(memory, np.uint8)
        self._free = [
            Slot(number, self._bytes[number * slot_bytes :][:slot_bytes]) for number in range(slots)
        ]
        self._taken: set[int] = set()
        self._closed = False
        self.slot_bytes = slot_bytes

    @property
    def name(self) -> str:
        """The file's, without a folder; `shm_open` wants a slash before it."""
        return self._path.name

    @property
    def total_bytes(self) -> int:
        return self._bytes.nbytes

    def take(self) -> Slot | None:
        """A slot that is nobody else's until it is given back; None when all are taken, or once closed."""
        if self._closed or not self._free:
            return None
        slot = self._free.pop()
        self._taken.add(slot.number)
        return slot

    def give_back(self, slot: Slot) -> None:
        self._taken.remove(slot.number)  # a KeyError for one that is not taken: two would write into it
        self._free.append(slot)

    def offset_of(self, array: NDArray[np.uint8]) -> int | None:
        """Bytes from the beginning of the file to the array; None where it does not lie in it as it is."""
        if self._closed or not array.nbytes or not array.flags.c_contiguous:
            return None
        offset = _address(array) - _address(self._bytes)
        return offset if 0 <= offset <= self.total_bytes - array.nbytes else None

    def close(self) -> None:
        """Remove the file. Arrays in it stay valid; the memory is free when the last of them is gone."""
        if not self._closed:
            self._closed = True
            self._remove_file()

    def _remove_file(self) -> None:
        self._path.unlink(missing_ok=True)
        os.close(self._file)


def allocate(*, slots: int, slot_bytes: int, folder: Path = _FOLDER) -> SharedSlots | None:
    """None, and a warning, where there is no room: pictures can travel without."""
    try:
        return SharedSlots(slots=slots, slot_bytes=slot_bytes, folder=folder)
    except OSError as exc:
        _LOGGER.warning(
            "No shared memory, so pictures travel in messages: %d slots of %d bytes do not fit into %s (%s)",
            slots,
            slot_bytes,
            folder,
            exc.strerror,
        )
        return None


def is_orphan(name: str) -> bool:
    """Whether a file of slots had this name and is gone: its owner closed it, or was killed."""
    return name.startswith(_PREFIX) and not (_FOLDER / name).exists()


def _address(array: NDArray[np.uint8]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def _new_locked_file(folder: Path) -> tuple[Path, int]:
    while True:
        path = folder / f"{_PREFIX}{os.getpid()}-{secrets.token_hex(8)}"
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file).st_nlink:
            return path, file
        os.close(file)  # somebody took it for a leftover before the lock was on it


def _remove_what_has_no_owner(folder: Path) -> None:
    for path in folder.glob(f"{_PREFIX}*"):
        # Gone already, another user's, or owned.
        with contextlib.suppress(FileNotFoundError, PermissionError, BlockingIOError):
            _remove_if_not_owned(path)


def _remove_if_not_owned(path: Path) -> None:
    file = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    finally:
        os.close(file)
