"""Isolated steps as a confined process on this machine, watched by us.

::

    LocalProcess ─► guard.py ─► python -m export_pipeline.worker STEP…     in a session of its own,
                                    └── confinement.py, then torch         with an environment from scratch
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Final, cast

from export_pipeline.confinement import over_memory, require_confinable
from export_pipeline.errors import Cancelled, ExportError, LimitExceeded, error_for
from export_pipeline.executors import guard, process_tree, staging
from export_pipeline.executors.output import Events, Log
from export_pipeline.job import JobFolder, JobRecord
from export_pipeline.pipeline import save_done, steps_of
from export_pipeline.progress import Event, Progress
from export_pipeline.request import GIBIBYTE, Limits

WATCH_SECONDS: Final = 0.1
DISK_RESERVE_BYTES: Final = GIBIBYTE // 2
_READ_BYTES = 65_536
_GUARD_SECONDS = 30.0


class LocalProcess:
    """python: of the export environment. unconfined: without confinement.py, for a trusted checkpoint.

    disk_reserve_bytes: what has to stay free on the disk of the job's folder.
    """

    def __init__(
        self, python: Path, *, unconfined: bool = False, disk_reserve_bytes: int = DISK_RESERVE_BYTES
    ) -> None:
        self._python = python
        self.unconfined = unconfined
        self._disk_reserve_bytes = disk_reserve_bytes

    def run(self, folder: JobFolder, record: JobRecord, steps: Sequence[str], progress: Progress) -> None:
        """As the port says. When a step is told as done, its results are in the job's folder, and saved."""
        if not self.unconfined:
            require_confinable()
        with staging.own_folder(folder, record, steps[0]) as own:
            taking = _Taking(own, folder, record, progress, unconfined=self.unconfined)
            events, log = Events(steps, taking.take), Log(folder.log_file)
            try:
                code = self._run_worker(own, record, steps, events, log)
            except KeyboardInterrupt:
                raise Cancelled from None
            finally:
                _keep_faults(own, log)
                log.close()
            if code != 0:
                raise _failure(code, events, log, str(own), str(folder.path))
            if taking.done != list(steps):
                raise ExportError("The isolated process ended before its steps were done.")

    def _run_worker(
        self, own: Path, record: JobRecord, steps: Sequence[str], events: Events, log: Log
    ) -> int:
        """The exit status, below zero for a signal. Nothing of it runs on, whatever is raised."""
        process = subprocess.Popen(  # noqa: S603 - our own guard and worker, as a list
            [
                *(sys.executable, "-I", "-S", guard.__file__, str(os.getpid())),
                *(str(self._python), "-I", "-B", "-m", "export_pipeline.worker"),
                *(["--unconfined"] if self.unconfined else []),
                *steps,
            ],
            cwd=own,
            env=worker_environment(self._python, own, record),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Not ours, so that Ctrl-C reaches us alone and we end it.
            start_new_session=True,
        )
        try:
            watch = _Watch(process.pid, own, record.request.limits, self._disk_reserve_bytes)
            _follow(process, {process.stdout: events.feed, process.stderr: log.feed}, watch)
            return process.wait()
        finally:
            cast("IO[bytes]", process.stdin).close()
            _wait_for_guard(process)
            cast("IO[bytes]", process.stdout).close()
            cast("IO[bytes]", process.stderr).close()


class _Taking:
    """Takes over what a step has left as soon as it is told as done, and tells it on then."""

    def __init__(
        self, own: Path, folder: JobFolder, record: JobRecord, progress: Progress, *, unconfined: bool
    ) -> None:
        self._own, self._folder, self._record, self._progress = own, folder, record, progress
        self._unconfined = unconfined
        self._steps = {step.name: step for step in steps_of(record)}
        self._began = time.monotonic()
        self.done: list[str] = []

    def take(self, event: Event) -> None:
        if event.kind == "began":
            self._began = time.monotonic()
        elif event.kind == "done":
            step = self._steps[event.step]
            staging.take_over(self._own, self._folder, step.results)
            seconds = round(time.monotonic() - self._began, 3)
            save_done(step, self._folder, self._record, seconds, unconfined=self._unconfined)
            self.done.append(step.name)
        self._progress(event)


class _Watch:
    def __init__(self, pid: int, own: Path, limits: Limits, disk_reserve_bytes: int) -> None:
        self._pid = pid
        self._own = own
        self._limits = limits
        self._disk_reserve_bytes = disk_reserve_bytes
        self._ends = time.monotonic() + limits.time_seconds

    def check(self) -> None:
        """Raises LimitExceeded."""
        if time.monotonic() > self._ends:
            raise LimitExceeded(f"The export took longer than its limit of {self._limits.time_seconds:g} s.")
        if process_tree.memory_bytes(self._pid) > self._limits.memory_bytes:
            raise LimitExceeded(over_memory(self._limits.memory_bytes))
        if shutil.disk_usage(self._own).free < self._disk_reserve_bytes:
            left = self._disk_reserve_bytes / GIBIBYTE
            raise LimitExceeded(f"The export was stopped: less than {left:.1f} GiB is left on its disk.")


def worker_environment(python: Path, own: Path, record: JobRecord) -> dict[str, str]:
    """All that a worker's environment holds: nothing of ours is inherited."""
    request = record.request
    private = str(own / staging.PRIVATE)
    threads = str(len(os.sched_getaffinity(0)))
    return {
        "JOB_ID": record.job_id,
        "EXPORT_FORMAT": request.export_format,
        "FRAMEWORK": request.framework,
        "CHECKPOINT_PATH": request.checkpoint,
        "MODEL_NAME": request.name,
        "MODEL_VERSION": str(record.version),
        "EXPORT_CONFIG": request.export_config.model_dump_json(),
        "OPTIMIZATION_CONFIG": json.dumps(request.optimization_config),
        "VALIDATION_CONFIG": request.validation_config.model_dump_json(),
        "MEMORY_LIMIT_BYTES": str(request.limits.memory_bytes),
        "PATH": f"{python.parent}:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "USER": "export",
        "HOME": private,
        "TMPDIR": private,
        "YOLO_CONFIG_DIR": private,
        # Exporters install packages behind one's back.
        "YOLO_AUTOINSTALL": "false",
        "PIP_REQUIRE_VIRTUALENV": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        # A confined process may open no GPU; so nothing is to look for one.
        "CUDA_VISIBLE_DEVICES": "",
    }


Feed = Callable[[bytes], None]


def _follow(process: subprocess.Popen[bytes], outputs: dict[IO[bytes] | None, Feed], watch: _Watch) -> None:
    """Read both outputs, and watch, until the process has ended and everything was read."""
    with selectors.DefaultSelector() as selector:
        for stream, feed in outputs.items():
            selector.register(cast("IO[bytes]", stream), selectors.EVENT_READ, feed)
        next_check = time.monotonic()
        while selector.get_map() or process.poll() is None:
            for key, _ in selector.select(WATCH_SECONDS):
                if data := os.read(key.fd, _READ_BYTES):
                    key.data(data)
                else:
                    selector.unregister(key.fileobj)
            if (now := time.monotonic()) >= next_check:
                watch.check()
                # It walks /proc, and may take a fiftieth of the time, however full that is.
                next_check = now + max(WATCH_SECONDS, 50 * (time.monotonic() - now))


def _wait_for_guard(process: subprocess.Popen[bytes]) -> None:
    """Its pipe is closed: it kills what it guards, and then ends."""
    try:
        process.wait(_GUARD_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _keep_faults(own: Path, log: Log) -> None:
    """What a step wrote into the log of its own folder."""
    faults = own / "log.txt"
    if faults.is_file() and not faults.is_symlink():
        with faults.open("rb") as file:
            log.feed(file.read(_READ_BYTES))


def _failure(code: int, events: Events, log: Log, own: str, job: str) -> ExportError:
    if code < 0:
        ended = f"was killed by signal {-code} ({signal.strsignal(-code)})"
    else:
        ended = f"ended with status {code}"
    if code < 0 or events.sentence is None:
        return ExportError(f"The isolated process {ended}. It said last:\n{log.last_lines()}")
    kind = LimitExceeded if events.limit_exceeded else error_for(code)
    return kind(events.sentence.replace(own, job))
