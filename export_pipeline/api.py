"""The Python API. The command does nothing but call it.

::

    from export_pipeline.api import export
    from export_pipeline.request import read_request

    request = read_request({"checkpoint": "best.pt", "name": "cats", "publish": "model_repo"})
    result = export(request, Path("exports/1"))
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export_pipeline import preflight, repository
from export_pipeline.certificate.measurements import load_dataset, load_local
from export_pipeline.environment import ensure_environment
from export_pipeline.errors import BadInput
from export_pipeline.executors import Executor
from export_pipeline.executors.local_process import LocalProcess
from export_pipeline.job import JobFolder, JobRecord, Stage, sha256_of
from export_pipeline.metadata import read_metadata
from export_pipeline.pipeline import STAGES, Step, run_job, steps_of
from export_pipeline.progress import Event, Progress
from export_pipeline.request import ExportRequest
from export_pipeline.storage import has_changed


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What a job has made so far: None where it stopped earlier, or was not asked for it.

    published: the model's folder in the repository. certificate: `validation` of metadata.schema.json.
    seconds: by stage, of every stage that is done.
    """

    job: Path
    name: str
    version: int
    package: Path | None
    published: Path | None
    certificate: dict[str, Any] | None
    seconds: dict[Stage, float]


class ConfinedHere:
    """A process on this machine, in an environment that is built when it is first needed."""

    def __init__(self, *, unconfined: bool = False) -> None:
        self.unconfined = unconfined

    def run(self, folder: JobFolder, record: JobRecord, steps: Sequence[str], progress: Progress) -> None:
        def say(message: str) -> None:
            progress(Event(step=steps[0], kind="working", message=message))

        LocalProcess(ensure_environment(say), unconfined=self.unconfined).run(folder, record, steps, progress)


def export(
    request: ExportRequest,
    out: Path,
    *,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> ExportResult:
    """Do the job in `out`: a new or empty folder, or that of this very job, which goes on then.

    executor: runs the isolated steps; by default a confined process on this machine.
    Raises ExportError, whose `exit_code` says what kind it is. What was done before it stays done.
    """
    request = preflight.from_any_folder(request)
    folder = JobFolder(out)
    preflight.check_outputs(request, folder.path)
    _require_room(folder, request)
    if folder.exists:
        _require_same_inputs(folder)
        version = folder.record().version
    else:
        preflight.check_inputs(request)
        version = _free_version(request)
    with folder.locked():
        _require_room(folder, request)
        job_id = folder.record().job_id if folder.exists else uuid.uuid4().hex
        folder.create(JobRecord(job_id=job_id, version=version, request=request))
        return _run(folder, executor, progress)


def resume(
    out: Path,
    *,
    from_stage: Stage | None = None,
    until: Stage | None = None,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> ExportResult:
    """Go on with the job in `out`, up to a stage; or do stages again, from one on, with their inputs of now.

    Raises as `export` does, and BadInput where there is no job, or none with these stages.
    """
    folder = JobFolder(out)
    record = folder.record()
    again = _stages_again(steps_of(record), from_stage, until)
    _require_same_inputs(folder, again)
    preflight.check_outputs(record.request, folder.path)
    with folder.locked():
        version = _version_again(folder, record, again)
        folder.create(record.model_copy(update={"version": version}))
        folder.forget_steps(again)
        return _run(folder, executor, progress, until)


def _run(
    folder: JobFolder, executor: Executor | None, progress: Progress | None, until: Stage | None = None
) -> ExportResult:
    run_job(folder, executor or ConfinedHere(), progress or _say_nothing, until=until)
    return result_of(folder)


def result_of(folder: JobFolder) -> ExportResult:
    """What is in a job's folder, by what its state says is done."""
    record, done = folder.record(), folder.state().steps
    seconds: dict[Stage, float] = {}
    for step in done.values():
        seconds[step.stage] = round(seconds.get(step.stage, 0.0) + step.seconds, 3)
    packaged = "package.package" in done
    publish = record.request.publish if "publish.publish" in done else None
    return ExportResult(
        job=folder.path,
        name=record.request.name,
        version=record.version,
        package=folder.zip_file(record) if packaged else None,
        published=None if publish is None else publish / record.request.name,
        certificate=read_metadata(folder.package / "metadata.json").get("validation") if packaged else None,
        seconds=seconds,
    )


def _free_version(request: ExportRequest) -> int:
    """The version that this model gets where it is published; 1 where it is not. Raises BadInput if taken."""
    if request.publish is None:
        return 1
    return repository.next_version(request.publish, request.name, new_version=request.new_version)


def _version_again(folder: JobFolder, record: JobRecord, again: Sequence[str]) -> int:
    """What is published never changes: what is made again otherwise needs a version of its own."""
    request = record.request
    if request.publish is None or "package.entry" not in again:
        return record.version
    if "publish.publish" in folder.state().steps and not again[0].startswith("package"):
        raise BadInput(
            f"This job is published as version {record.version} of {request.name}, which never changes: "
            "export into another folder with --new-version, or do stages again with --until validate."
        )
    entry = folder.entry_root / request.name
    return repository.keep_or_next_version(
        request.publish, entry, record.version, new_version=request.new_version
    )


def _require_room(folder: JobFolder, request: ExportRequest) -> None:
    """Other limits than before are no other job: they change how it is made, not what."""
    foreign = folder.foreign_files()
    if foreign:
        raise BadInput(f"{folder.path} is not empty and holds no export job: {', '.join(foreign[:3])} …")
    if folder.exists and folder.record().request.model_copy(update={"limits": request.limits}) != request:
        raise BadInput(
            f"{folder.path} holds the job of another request: `visiongate-export resume` goes on with it."
        )


def _require_same_inputs(folder: JobFolder, again: Sequence[str] = ()) -> None:
    """Who trains again, or labels more, and exports again under the same names wants the new one.

    again: steps that take their inputs anew. Inputs that are gone are no others.
    """
    record = folder.record()
    validation = record.request.validation_config
    done = folder.state().steps.keys() - set(again)
    if "checkpoint.fetch" in done and has_changed(folder, record.request.checkpoint):
        raise BadInput(
            f"The checkpoint has changed since the job in {folder.path} fetched it: export into another "
            "folder, or take the new one with `visiongate-export resume --from checkpoint`."
        )
    if "validate.pictures" in done and validation.pictures is not None and validation.pictures.is_dir():
        now = {file.name: sha256_of(file) for file in preflight.picture_files(validation.pictures)}
        if now != {file.name: sha256_of(file) for file in folder.pictures.iterdir()}:
            raise BadInput(
                f"The golden pictures in {validation.pictures} have changed since the job in {folder.path} "
                "took them: export into another folder, or take the new ones with `visiongate-export resume "
                "--from validate`."
            )
    if "validate.measure" in done and validation.dataset is not None and validation.dataset.exists():
        load_dataset(folder, record, load_local(folder).dataset)


def _stages_again(steps: Sequence[Step], from_stage: Stage | None, until: Stage | None) -> list[str]:
    """Steps from one stage up to another, that are to be done again."""
    have = {step.stage for step in steps}
    for stage in (from_stage, until):
        if stage is not None and stage not in have:
            raise BadInput(
                f"This job has no stage {stage}; it has {', '.join(s for s in STAGES if s in have)}."
            )
    if from_stage is None:
        return []
    last = STAGES.index(until) if until is not None else len(STAGES)
    if STAGES.index(from_stage) > last:
        raise BadInput(f"The stage {until} comes before {from_stage}.")
    return [step.name for step in steps if STAGES.index(from_stage) <= STAGES.index(step.stage) <= last]


def _say_nothing(_event: Event) -> None:
    pass
