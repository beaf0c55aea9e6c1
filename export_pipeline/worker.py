"""The isolated process: `python -m export_pipeline.worker STEP…`, the same for every executor.

Works in the current folder, which holds the results of the steps before, and leaves theirs there. What is
asked comes from the environment; OPTIMIZATION_CONFIG and the last row may be absent::

    JOB_ID  EXPORT_FORMAT  FRAMEWORK  CHECKPOINT_PATH  MODEL_NAME  MODEL_VERSION
    EXPORT_CONFIG  VALIDATION_CONFIG  OPTIMIZATION_CONFIG           JSON
    MEMORY_LIMIT_BYTES  CALLBACK_URL  CALLBACK_TOKEN                callbacks.py

It says one JSON line an event on stdout (progress.py), and as the last one `{"error": "…"}` if it fails; all
that libraries print goes to stderr. Exit codes: 0 done, 2 bad input, 3 unsupported, 4 validation failed, 130
cancelled, 1 anything else. `--unconfined` leaves confinement.py out.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import synchronize
from pathlib import Path
from typing import IO, Any, Final

from export_pipeline import callbacks
from export_pipeline.confinement import confine, die_with_parent, over_memory
from export_pipeline.datasets.paths import paths_of
from export_pipeline.errors import BadInput, Cancelled, ExportError
from export_pipeline.job import JobFolder, JobRecord
from export_pipeline.pipeline import run_here, steps_of
from export_pipeline.progress import Event
from export_pipeline.request import Limits, read_request
from export_pipeline.text import printable

UNCONFINED: Final = "--unconfined"
_MAX_MESSAGE_CHARACTERS = 2000


def main(arguments: Sequence[str]) -> int:
    die_with_parent()
    if callbacks.wanted(os.environ):
        return _reported(arguments)
    events = _take_stdout()
    signal.signal(signal.SIGTERM, _interrupt)
    limit_bytes = int(os.environ.get("MEMORY_LIMIT_BYTES") or Limits().memory_bytes)
    try:
        _work(arguments, limit_bytes, events)
    except KeyboardInterrupt:
        return _fail(events, Cancelled())
    except ExportError as exc:
        if isinstance(exc.__cause__, MemoryError):
            return _fail(events, ExportError(over_memory(limit_bytes)), limit_exceeded=True)
        return _fail(events, exc)
    return 0


def _reported(arguments: Sequence[str]) -> int:
    command = [sys.executable, "-I", "-B", "-m", "export_pipeline.worker", *arguments]
    try:
        return callbacks.run_reported(command, os.environ)
    except BadInput as exc:
        return _fail(sys.stdout, exc)


def record_from(environment: Mapping[str, str]) -> JobRecord:
    """Raises BadInput naming a variable that is missing or does not fit; Unsupported as `read_request`."""
    try:
        request = read_request(
            {
                "checkpoint": environment["CHECKPOINT_PATH"],
                "name": environment["MODEL_NAME"],
                "export_format": environment["EXPORT_FORMAT"],
                "framework": environment["FRAMEWORK"],
                "export_config": _json(environment, "EXPORT_CONFIG"),
                "optimization_config": _json(environment, "OPTIMIZATION_CONFIG"),
                "validation_config": _json(environment, "VALIDATION_CONFIG"),
            }
        )
        return JobRecord(
            job_id=environment["JOB_ID"], version=int(environment["MODEL_VERSION"]), request=request
        )
    except KeyError as exc:
        raise BadInput(f"The environment variable {exc.args[0]} is missing.") from exc
    except ValueError as exc:
        raise BadInput(f"MODEL_VERSION is not a number: {environment['MODEL_VERSION']!r}.") from exc


def _work(arguments: Sequence[str], memory_limit_bytes: int, events: IO[str]) -> None:
    names = [argument for argument in arguments if argument != UNCONFINED]
    record = record_from(os.environ)
    steps = {step.name: step for step in steps_of(record)}
    unknown = [name for name in names if name not in steps]
    if unknown or not names:
        raise BadInput(f"There is no such step: {', '.join(unknown) or 'none is named'}.")
    folder = JobFolder(Path.cwd())
    if UNCONFINED not in arguments:
        # Room above the limit, so that whoever watches sees it passed; this stops what is quicker than that.
        confine(folder.path, _readable(folder, record), memory_limit_bytes * 5 // 4)
        _lock_threads_only()
    folder.create(record)
    run_here(folder, record, [steps[name] for name in names], lambda event: _tell(events, event))


def _readable(folder: JobFolder, record: JobRecord) -> list[Path]:
    """What was lent, and the pictures that the request names."""
    lent = [path.resolve() for path in folder.path.rglob("*") if path.is_symlink()]
    validation = record.request.validation_config
    if not validation.enabled:
        return lent
    pictures = [] if validation.pictures is None else [validation.pictures]
    return [*lent, *pictures, *([] if validation.dataset is None else paths_of(validation.dataset))]


def _lock_threads_only() -> None:
    """Locks between processes are files in /dev/shm, where other programs keep theirs, so it is not granted.

    Libraries take such locks even for threads (Python's own ThreadPool does), and here is only one process.
    """
    for name in ("Lock", "RLock", "Semaphore", "BoundedSemaphore", "Condition", "Event"):
        setattr(synchronize, name, _without_context(getattr(threading, name)))


def _without_context(make: Callable[..., object]) -> Callable[..., object]:
    def make_for_threads(*arguments: object, ctx: object) -> object:  # noqa: ARG001 - as multiprocessing calls it
        return make(*arguments)

    return make_for_threads


def _json(environment: Mapping[str, str], name: str) -> Any:
    try:
        return json.loads(environment.get(name) or "{}")
    except (ValueError, RecursionError) as exc:
        raise BadInput(f"{name} is not JSON: {exc}.") from exc


def _take_stdout() -> IO[str]:
    """Our stdout, for events only: for everybody else it leads to stderr from now on."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return events


def _tell(events: IO[str], event: Event) -> None:
    message = _short(event.message)
    print(event.model_copy(update={"message": message}).model_dump_json(), file=events, flush=True)


def _fail(events: IO[str], error: ExportError, *, limit_exceeded: bool = False) -> int:
    print(
        json.dumps({"error": _short(str(error)), "limit_exceeded": limit_exceeded}), file=events, flush=True
    )
    return error.exit_code


def _short(text: str) -> str:
    """As the executor's bound on a line has it; what no encoding takes is replaced."""
    return printable(text[:_MAX_MESSAGE_CHARACTERS])


def _interrupt(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
