"""What can go wrong in an export, and the exit code that says so.

::

    ExportError                          1   anything else: a full disk, a crash, a broken environment
    ├── BadInput                         2   for the caller to mend: checkpoint, option, picture, address
    ├── Unsupported                      3   well-formed, but this combination cannot be exported
    ├── ValidationFailed                 4   the export works, and does not answer as the checkpoint does
    ├── LimitExceeded                    1   the isolated process took more memory or time than it may
    └── Cancelled                      130   Ctrl-C or SIGTERM, as a shell counts it
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path


class ExportError(Exception):
    """`str()` is a sentence for the person who asked; it names what was asked for, never a secret."""

    exit_code = 1


class BadInput(ExportError):
    exit_code = 2


class Unsupported(ExportError):
    exit_code = 3


class ValidationFailed(ExportError):
    exit_code = 4


class LimitExceeded(ExportError):
    pass


class Cancelled(ExportError):
    exit_code = 130

    def __init__(self) -> None:
        super().__init__("Cancelled; `visiongate-export resume` goes on where it stopped.")


def error_for(exit_code: int) -> type[ExportError]:
    """The error that a process which ended with this code meant."""
    return {2: BadInput, 3: Unsupported, 4: ValidationFailed}.get(exit_code, ExportError)


@contextlib.contextmanager
def reading(path: Path | str, what: str) -> Iterator[None]:
    """Turn what the file system says of a caller's file into BadInput. `what`: "the checkpoint", say."""
    try:
        yield
    except FileNotFoundError as exc:
        raise BadInput(f"{what[0].upper()}{what[1:]} {path} does not exist.") from exc
    except IsADirectoryError as exc:
        raise BadInput(f"{what[0].upper()}{what[1:]} {path} is a folder, not a file.") from exc
    except PermissionError as exc:
        raise BadInput(f"{what[0].upper()}{what[1:]} {path} may not be read: permission denied.") from exc
    except OSError as exc:
        if exc.errno not in {errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO, errno.EIO}:
            raise
        raise BadInput(f"{what[0].upper()}{what[1:]} {path} cannot be read: {exc.strerror}.") from exc


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a full disk, a file-size limit or a folder that may not be written into one clear sentence.

    It names the file that the system names, but for drafts and locks beside `path`, of which nobody knows. A
    file elsewhere that is refused was to be read, as like as not: that error passes unchanged.
    """
    try:
        yield
    except OSError as exc:
        named = _blamed(exc, path)
        if exc.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise ExportError(f"There is no room left for {named}: {exc.strerror}.") from exc
        refused = exc.errno in {errno.EACCES, errno.EPERM, errno.EROFS}
        if refused and (named.is_relative_to(path) or path.is_relative_to(named)):
            raise BadInput(f"{named} may not be written: {exc.strerror}.") from exc
        raise


def _blamed(error: OSError, path: Path) -> Path:
    """Of two names, as of a rename, the second, which is to be written. An open file may have a number."""
    names = [name for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    if not names:
        return path
    named = Path(os.fsdecode(names[-1]))
    beside = named.is_relative_to(path.parent) and named != path.parent
    return path if beside and named.relative_to(path.parent).parts[0].startswith(".") else named
