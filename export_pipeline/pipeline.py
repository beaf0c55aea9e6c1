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

import importlib
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from export_pipeline.errors import ExportError
from export_pipeline.executors import Executor
from export_pipeline.job import JobFolder, JobRecord, Stage, StepRecord
from export_pipeline.progress import Event, Progress, Say

Function = Callable[[JobFolder, JobRecord, Say], None]


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
    """The first step that is not done, or whose results have changed since, and all after it."""
    records = folder.state().steps
    for index, step in enumerate(steps):
        record = records.get(step.name)
        if record is None or record.sha256 != folder.digest(step.results):
            return steps[index:]
    return ()


def run_job(folder: JobFolder, executor: Executor, progress: Progress, *, until: Stage | None = None) -> None:
    """Do what is not done yet. Raises ExportError; what was done before it stays done."""
    record = folder.record()
    steps = steps_of(record)
    if until is not None:
        steps = tuple(step for step in steps if _at_most(step.stage, until))
    todo = list(pending(folder, steps))
    for step in steps[: len(steps) - len(todo)]:
        progress(Event(step=step.name, kind="done_before"))
    while todo:
        group = _same_place(todo)
        if group[0].isolated:
            executor.run(folder, record, [step.name for step in group], progress)
        else:
            run_here(folder, record, group, progress)
        todo = todo[len(group) :]
        if [step.name for step in pending(folder, steps)] != [step.name for step in todo]:
            raise ExportError(f"{group[-1].name} ended without leaving what it should.")


def run_here(folder: JobFolder, record: JobRecord, steps: Sequence[Step], progress: Progress) -> None:
    """Run steps in this process, whichever it is."""
    for step in steps:
        began = time.monotonic()
        progress(Event(step=step.name, kind="began"))
        step.load()(folder, record, _say(step, progress))
        digest = folder.digest(step.results)
        if digest is None:
            raise ExportError(f"{step.name} did not leave {' and '.join(step.results)}.")
        seconds = round(time.monotonic() - began, 3)
        command = shlex.join(
            ["visiongate-export", "resume", str(folder.path), "--from", step.stage, "--until", step.stage]
        )
        folder.save_step(
            step.name, StepRecord(stage=step.stage, seconds=seconds, sha256=digest, command=command)
        )
        progress(Event(step=step.name, kind="done"))


def _at_most(stage: Stage, until: Stage) -> bool:
    order = ("checkpoint", "export", "validate", "package", "publish")
    return order.index(stage) <= order.index(until)


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
