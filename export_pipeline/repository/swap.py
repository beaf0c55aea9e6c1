"""Folders that change in one step, written by processes that take turns.

A draft is made beside its target, as `.{name}.draft-{random}`. Writers hold the lock of the folder that both
lie in, so a draft that somebody else finds there has lost its owner.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from export_pipeline.errors import BadInput, ExportError

LOCK_FILE: Final = ".visiongate.lock"
LOCK_SECONDS: Final = 60.0
"""A writer copies one model and syncs it; who waits longer than this waits for something that is stuck."""

_POLL_SECONDS: Final = 0.02
_WITHOUT_LINKS: Final = {errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV}
_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2


@contextlib.contextmanager
def exclusive(parent: Path, timeout_seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Be the one who writes in this folder, and clear away the drafts of writers that were killed.

    Raises ExportError where another writer does not finish in time. The kernel lets go with its owner.
    """
    file = os.open(parent / LOCK_FILE, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _lock(file, parent, time.monotonic() + timeout_seconds)
        for draft in parent.glob(".*.draft-*"):
            _clear_away(draft)
        yield
    finally:
        os.close(file)


def _lock(file: int, parent: Path, deadline: float) -> None:
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise ExportError(f"Another process has been writing in {parent} for too long.") from None
            time.sleep(_POLL_SECONDS)


@contextlib.contextmanager
def drafting(target: Path) -> Iterator[Path]:
    """An empty folder beside `target`. Whatever lies at its place when the block ends is removed."""
    draft = target.with_name(f".{target.name}.draft-{secrets.token_hex(8)}")
    draft.mkdir()
    try:
        yield draft
    finally:
        _clear_away(draft)


def _clear_away(draft: Path) -> None:
    """What cannot be removed stays: no reader looks at it, and no writer is to fail because of it."""
    if draft.is_dir() and not draft.is_symlink():
        shutil.rmtree(draft, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def copy_tree(source: Path, target: Path) -> None:
    """Fill the folder `target` with the plain files below `source`, as this process's umask has them."""
    for entry in sorted(source.iterdir()):
        if entry.is_dir():
            (target / entry.name).mkdir()
            copy_tree(entry, target / entry.name)
        else:
            shutil.copyfile(entry, target / entry.name)


def link_tree(source: Path, target: Path, *, leave_out: frozenset[str] = frozenset()) -> None:
    """Fill the folder `target` with what `source` holds, but for `leave_out` at its top.

    Files are hard links to the same content, where the file system has such, else copies. They must be
    replaced, not written to.
    """
    shutil.copystat(source, target)
    for entry in sorted(os.scandir(source), key=lambda entry: entry.name):
        if entry.name in leave_out:
            continue
        if entry.is_dir(follow_symlinks=False):
            (target / entry.name).mkdir()
            link_tree(Path(entry.path), target / entry.name)
        else:
            _link(Path(entry.path), target / entry.name)


def _link(source: Path, target: Path) -> None:
    if source.is_symlink():
        target.symlink_to(source.readlink())
        return
    try:
        target.hardlink_to(source)
    except OSError as exc:
        if exc.errno not in _WITHOUT_LINKS:
            raise
        if not stat.S_ISREG(source.stat().st_mode):
            raise BadInput(f"{source} is neither a file nor a folder: it cannot be carried along.") from exc
        shutil.copy2(source, target)


def sync_tree(folder: Path) -> None:
    """Onto the disk, content before names, so that no crash leaves a name without its content."""
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            path = Path(root, name)
            if stat.S_ISREG(path.lstat().st_mode):
                _sync(path)
        _sync(Path(root))


def appear(draft: Path, target: Path) -> None:
    """Give the draft its name, which nobody may have."""
    sync_tree(draft)
    draft.rename(target)
    _sync(target.parent)


def exchange(draft: Path, target: Path) -> None:
    """Draft and target change places in one step. Raises BadInput where the file system cannot do that."""
    sync_tree(draft)
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError as exc:
        raise BadInput("This system's C library cannot exchange two folders: it has no renameat2.") from exc
    places = (_AT_FDCWD, os.fsencode(draft), _AT_FDCWD, os.fsencode(target), _RENAME_EXCHANGE)
    if renameat2(*places) != 0:
        raise _cannot_exchange(target, ctypes.get_errno())
    _sync(target.parent)


def _cannot_exchange(target: Path, code: int) -> BadInput | OSError:
    if code in {errno.EINVAL, errno.ENOSYS}:
        return BadInput(
            f"The file system of {target.parent} cannot exchange two folders in one step; "
            "keep the model repository on ext4, XFS, Btrfs or tmpfs."
        )
    if code in {errno.EXDEV, errno.EBUSY}:
        return BadInput(f"{target} is a mount of its own, which cannot be replaced in one step.")
    return OSError(code, os.strerror(code), str(target))


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
