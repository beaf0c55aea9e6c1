"""The isolated process works in a folder of its own: what it needs is lent, what it leaves is taken over.

::

    <job>/.isolated.draft/            the process's own folder, empty at first
        checkpoint ──► ../checkpoint  results of earlier steps: links, to read only
        model/…                       its own results; after each step hard-linked into the job's folder
        .private/                     its HOME and TMPDIR

So it can change neither the request nor the state, the certificate or a result that was taken over before it
was started; and what it changes after a step no longer has the hash that was put down for it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from export_pipeline.errors import ExportError, writing
from export_pipeline.job import JobFolder, JobRecord
from export_pipeline.pipeline import Step, steps_of
from export_pipeline.request import GIBIBYTE
from export_pipeline.tree import remove, walk

PRIVATE: Final = ".private"
"""Of an isolated process's folder: for what libraries keep for themselves."""
MOST_DEEP: Final = 8
MOST_ENTRIES: Final = 2000
MOST_BYTES: Final = 16 * GIBIBYTE
"""Of one result, by the length of its files: holes take no room on the disk, but are read like all else."""
MOST_BYTES_READ_WHOLE: Final = {".json": GIBIBYTE // 16, ".npz": GIBIBYTE}


@contextlib.contextmanager
def own_folder(folder: JobFolder, record: JobRecord, first_step: str) -> Iterator[Path]:
    """The isolated process's folder, with the results of all steps before; removed when the block ends."""
    own = folder.path / ".isolated.draft"  # by this name, what a killed job leaves of it is cleared away
    try:
        with writing(own):
            remove(own)
            own.mkdir(mode=0o700, parents=True)
            (own / PRIVATE).mkdir()
            for step in _steps_before(first_step, record):
                _lend(own, folder, step)
        yield own
    finally:
        remove(own)


def take_over(own: Path, folder: JobFolder, results: Sequence[str]) -> None:
    """Put a step's results into the job's folder.

    Raises ExportError where they are not plain files, or more than can be read safely.
    """
    for result in results:
        source, target = own / result, folder.path / result
        if not os.path.lexists(source):
            raise ExportError(f"The isolated process did not leave {result}.")
        draft = target.with_name(f".{target.name}.draft")
        try:
            with writing(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                remove(draft)
                _require_plain(source)
                _link_tree(source, draft)
                _require_plain(draft)  # nobody else can reach this one, and change what it is
                remove(target)
                draft.rename(target)
        except (OSError, RecursionError) as exc:  # it may change what it has left while we take it
            raise ExportError(
                f"What the isolated process left as {result} cannot be taken over: {exc}"
            ) from exc


def _steps_before(first_step: str, record: JobRecord) -> Iterator[Step]:
    for step in steps_of(record):
        if step.name == first_step:
            return
        yield step


def _lend(own: Path, folder: JobFolder, step: Step) -> None:
    for result in step.results:
        (own / result).parent.mkdir(parents=True, exist_ok=True)
        (own / result).symlink_to(folder.path / result)


def _link_tree(source: Path, target: Path) -> None:
    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, target, copy_function=_link, symlinks=True)
    else:
        _link(source, target)


def _link(source: Path | str, target: Path | str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target, follow_symlinks=False)


def _require_plain(result: Path) -> None:
    left_bytes = MOST_BYTES
    for entries, (path, depth) in enumerate(walk(result)):
        if depth > MOST_DEEP or entries > MOST_ENTRIES:
            raise ExportError("The isolated process left more files, or deeper folders, than it may.")
        status = path.lstat()
        if stat.S_ISDIR(status.st_mode):
            continue
        if not stat.S_ISREG(status.st_mode):
            raise ExportError(f"The isolated process left {path.name}, which is neither a file nor a folder.")
        left_bytes -= status.st_size
        if left_bytes < 0 or status.st_size > MOST_BYTES_READ_WHOLE.get(path.suffix, MOST_BYTES):
            raise ExportError(f"The isolated process left {path.name}, which makes more bytes than it may.")
