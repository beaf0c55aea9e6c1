"""The steps of an export, in order; each saved when it is done, so that a job goes on where it was killed.

::

    stage        step                 place      leaves
    checkpoint   checkpoint.fetch     here       checkpoint/
                 checkpoint.inspect   isolated   checkpoint.json
    export       export.graph         isolated   model/
    validate     validate.pictures    isolated   pictures/
                 validate.measure     isolated   measurements/local/
                 validate.serve       here       measurements/gateway/
                 validate.judge       here       validation.json
    package      package.entry        here       entry/
                 package.package      here       package/, the zip
    publish      publish.publish      here       published.json

Isolated steps open the checkpoint or what was made of it, and run in a process of their own that can reach
nothing but the job's folder. The other steps run here, and import neither torch nor Ultralytics.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import shlex
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, get_args

from export_pipeline.errors import ExportError, writing
from export_pipeline.executors import Executor
from export_pipeline.job import JobFolder, JobRecord, Stage, StepRecord
from export_pipeline.progress import Event, Progress, Say

Function = Callable[[JobFolder, JobRecord, Say], None]
STAGES: Final[tuple[Stage, ...]] = get_args(Stage)
"""In order."""


@dataclass(frozen=True, slots=True)
class Step:
    """function: `module:name`, imported only where it runs. results: what it leaves in the job's folder."""

    name: str
    function: str
    results: tuple[str, ...]
    isolated: bool = False

    @property
    def stage(self) -> Stage:
        stage: Stage = self.name.partition(".")[0]  # type: ignore[assignment]  # the names below begin with one
        return stage

    def load(self) -> Function:
        module, _, name = self.function.partition(":")
        function: Function = getattr(importlib.import_module(f"export_pipeline.stages.{module}"), name)
        return function


def steps_of(record: JobRecord) -> tuple[Step, ...]:
    request = record.request
    steps = [
        Step("checkpoint.fetch", "checkpoint:fetch", ("checkpoint",)),
        Step("checkpoint.inspect", "checkpoint:inspect", ("checkpoint.json",), isolated=True),
        Step("export.graph", "export:export_graph", ("model",), isolated=True),
    ]
    if request.validation_config.enabled:
        steps += [
            Step("validate.pictures", "validate:collect_pictures", ("pictures",), isolated=True),
            Step("validate.measure", "validate:measure", ("measurements/local",), isolated=True),
            Step("validate.serve", "validate:serve", ("measurements/gateway",)),
            Step("validate.judge", "validate:judge", ("validation.json",)),
        ]
    steps += [
        Step("package.entry", "package:build_entry", ("entry",)),
        Step("package.package", "package:build_package", ("package", f"{request.name}-{record.version}.zip")),
    ]
    if request.publish is not None:
        steps.append(Step("publish.publish", "publish:publish", ("published.json",)))
    return tuple(steps)


def pending(folder: JobFolder, steps: Sequence[Step]) -> Sequence[Step]:
    """The first step that is not done, or whose inputs or results have changed since, and all after it."""
    records = folder.state().steps
    before = ""
    for index, step in enumerate(steps):
        record = records.get(step.name)
        if record is None or record.inputs_sha256 != before or record.sha256 != folder.digest(step.results):
            return steps[index:]
        before = _chained(before, record)
    return ()


def run_job(folder: JobFolder, executor: Executor, progress: Progress, *, until: Stage | None = None) -> None:
    """Do what is not done yet. Raises ExportError; what was done before it stays done."""
    folder.tidy()
    record = folder.record()
    steps = steps_of(record)
    if until is not None:
        steps = tuple(step for step in steps if STAGES.index(step.stage) <= STAGES.index(until))
    todo = list(pending(folder, steps))
    for step in steps[: len(steps) - len(todo)]:
        progress(Event(step=step.name, kind="done_before"))
    while todo:
        group = _same_place(todo)
        if group[0].isolated:
            executor.run(folder, record, [step.name for step in group], progress)
            folder.tidy()
        else:
            run_here(folder, record, group, progress, unconfined=executor.unconfined)
        todo = todo[len(group) :]
        left = pending(folder, steps)
        if len(left) > len(todo) or folder.record() != record:
            raise ExportError(f"{group[-1].name} ended without leaving what it should.")


def run_here(
    folder: JobFolder,
    record: JobRecord,
    steps: Sequence[Step],
    progress: Progress,
    *,
    unconfined: bool = False,
) -> None:
    """Run steps in this process, whichever it is, one after the other, and save each.

    unconfined: how the job's isolated steps run, for the commands that are put down.
    """
    for step in steps:
        began = time.monotonic()
        progress(Event(step=step.name, kind="began"))
        with _faults_told(step, folder):
            step.load()(folder, record, _say(step, progress))
            save_done(step, folder, record, round(time.monotonic() - began, 3), unconfined=unconfined)
        progress(Event(step=step.name, kind="done"))


def save_done(
    step: Step, folder: JobFolder, record: JobRecord, seconds: float, *, unconfined: bool = False
) -> None:
    """Put down that a step has left its results in the folder. Raises ExportError where it has not."""
    digest = folder.digest(step.results)
    if digest is None:
        raise ExportError(f"{step.name} did not leave {' and '.join(step.results)}.")
    done = StepRecord(
        stage=step.stage,
        seconds=seconds,
        sha256=digest,
        inputs_sha256=_inputs_of(step, folder, record),
        command=_command(step.stage, folder, unconfined=unconfined),
    )
    folder.save_step(step.name, done)


def _command(stage: Stage, folder: JobFolder, *, unconfined: bool) -> str:
    words = ["visiongate-export", "resume", str(folder.path), "--from", stage, "--until", stage]
    return shlex.join([*words, *(["--unconfined"] if unconfined else [])])


def _inputs_of(step: Step, folder: JobFolder, record: JobRecord) -> str:
    """Over the results of all steps before this one."""
    records = folder.state().steps
    before = ""
    for earlier in steps_of(record):
        if earlier.name == step.name:
            break
        if earlier.name in records:
            before = _chained(before, records[earlier.name])
    return before


def _chained(before: str, record: StepRecord) -> str:
    return hashlib.sha256(f"{before}{record.sha256}".encode()).hexdigest()


@contextlib.contextmanager
def _faults_told(step: Step, folder: JobFolder) -> Iterator[None]:
    """What nobody foresaw becomes one sentence, and a stack trace in the log."""
    try:
        with writing(folder.path):
            yield
    except ExportError:
        raise
    except Exception as exc:
        with contextlib.suppress(OSError), folder.log_file.open("a") as log:
            traceback.print_exc(file=log)
        what = str(exc).partition("\n")[0] or "no reason given"
        raise ExportError(
            f"{step.name} failed: {type(exc).__name__}: {what}. The log says more: {folder.log_file}"
        ) from exc


def _same_place(steps: Sequence[Step]) -> list[Step]:
    group = []
    for step in steps:
        if step.isolated != steps[0].isolated:
            break
        group.append(step)
    return group


def _say(step: Step, progress: Progress) -> Say:
    def say(message: str, fraction: float | None = None) -> None:
        progress(Event(step=step.name, kind="working", message=message, fraction=fraction))

    return say
