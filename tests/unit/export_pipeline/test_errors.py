from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from export_pipeline.errors import (
    BadInput,
    Cancelled,
    ExportError,
    LimitExceeded,
    Unsupported,
    ValidationFailed,
    error_for,
    reading,
    writing,
)


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (ExportError("why"), 1),
        (LimitExceeded("why"), 1),
        (BadInput("why"), 2),
        (Unsupported("why"), 3),
        (ValidationFailed("why"), 4),
        (Cancelled(), 130),
    ],
)
def test_each_error_has_the_exit_code_of_the_contract(error: ExportError, exit_code: int) -> None:
    assert error.exit_code == exit_code


@pytest.mark.parametrize(
    ("exit_code", "error"),
    [(2, BadInput), (3, Unsupported), (4, ValidationFailed), (1, ExportError), (137, ExportError)],
)
def test_an_exit_code_is_read_as_it_was_meant(exit_code: int, error: type[ExportError]) -> None:
    assert error_for(exit_code) is error


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (errno.ENOENT, "The label file /x does not exist."),
        (errno.EISDIR, "The label file /x is a folder, not a file."),
        (errno.EACCES, "The label file /x may not be read: permission denied."),
        (errno.ENOTDIR, "The label file /x cannot be read: Not a directory."),
        (errno.ENAMETOOLONG, "The label file /x cannot be read: File name too long."),
        (errno.ELOOP, "The label file /x cannot be read: Too many levels of symbolic links."),
    ],
)
def test_a_file_that_cannot_be_read_is_the_callers(number: int, sentence: str) -> None:
    with pytest.raises(BadInput) as caught, reading(Path("/x"), "the label file"):
        raise OSError(number, os.strerror(number))

    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("number", "error", "sentence"),
    [
        (errno.ENOSPC, ExportError, "There is no room left for /x: No space left on device."),
        (errno.EFBIG, ExportError, "There is no room left for /x: File too large."),
        (errno.EDQUOT, ExportError, "There is no room left for /x: Disk quota exceeded."),
        (errno.EACCES, BadInput, "/x may not be written: Permission denied."),
        (errno.EROFS, BadInput, "/x may not be written: Read-only file system."),
    ],
)
def test_what_cannot_be_written_says_why(number: int, error: type[ExportError], sentence: str) -> None:
    with pytest.raises(ExportError) as caught, writing(Path("/x")):
        raise OSError(number, os.strerror(number))

    assert (type(caught.value), str(caught.value)) == (error, sentence)


@pytest.mark.parametrize(
    ("number", "names", "error", "sentence"),
    [
        (errno.EACCES, ["/job/model/a"], BadInput, "/job/model/a may not be written: Permission denied."),
        (errno.EACCES, ["/"], BadInput, "/ may not be written: Permission denied."),
        (errno.EACCES, ["/.job.draft/a"], BadInput, "/job may not be written: Permission denied."),
        (errno.EACCES, ["/pictures/a", "/job/a"], BadInput, "/job/a may not be written: Permission denied."),
        (errno.EACCES, [b"/job/a"], BadInput, "/job/a may not be written: Permission denied."),
        (errno.EACCES, [3], BadInput, "/job may not be written: Permission denied."),
        (errno.ENOSPC, ["/tmp/a"], ExportError, "There is no room left for /tmp/a: No space left on device."),
        (errno.EACCES, ["/pictures/a"], PermissionError, "[Errno 13] Permission denied: '/pictures/a'"),
        (errno.EPERM, ["/jobs"], PermissionError, "[Errno 1] Operation not permitted: '/jobs'"),
    ],
)
def test_the_file_that_is_to_blame_is_named(
    number: int, names: list[str | bytes | int], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error) as caught, writing(Path("/job")):
        raise OSError(number, os.strerror(number), names[0], None, *names[1:])

    assert (type(caught.value), str(caught.value)) == (error, sentence)


@pytest.mark.parametrize(
    "block", [reading(Path("/x"), "the file"), writing(Path("/x"))], ids=["read", "write"]
)
def test_other_trouble_passes_through(block: object) -> None:
    with pytest.raises(OSError, match="Bad file descriptor"), block:  # type: ignore[attr-defined]  # a context manager
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
