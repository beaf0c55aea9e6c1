"""The folder of one export job: all there is of it, so that a job killed anywhere goes on from there.

::

    job.json                     what was asked; its version and its limits may change when it is resumed
    state.json                   what is done: one record a step, saved after each
    checkpoint/…                 the checkpoint file, as fetched       checkpoint.json   what it is
    fetched.json                 which of a server's contents it is
    model/model.onnx             the exported file                     model/model.json  what it is
    pictures/…                   the golden pictures
    measurements/…               what checkpoint, exported file and gateway answered
    validation.json              the certificate
    entry/<name>/…               the Triton entry as it will be published
    package/…, <name>-<version>.zip
    log.txt                      everything the isolated process said

Every file and folder appears by a rename, whole or not at all. The isolated process may write here, so
nothing here is followed that is not a plain file or folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from export_pipeline.errors import BadInput, ExportError, writing
from export_pipeline.facts import CheckpointFacts, Facts, ModelFacts
from export_pipeline.request import ExportRequest
from export_pipeline.tree import remove, walk

Stage = Literal["checkpoint", "export", "validate", "package", "publish"]


class JobRecord(Facts):
    """version: the one that this job's model gets in the repository."""

    job_id: str
    version: int
    request: ExportRequest


class StepRecord(Facts):
    """One finished step. sha256: of all its results. inputs_sha256: of all results before it.

    command: does the step's stage again.
    """

    stage: Stage
    seconds: float
    sha256: str
    inputs_sha256: str
    command: str


class State(Facts):
    steps: dict[str, StepRecord] = Field(default_factory=dict)


class JobFolder:
    """Reading and writing needs no lock but `locked`: steps run one after the other."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.checkpoint_folder = self.path / "checkpoint"
        self.model_folder = self.path / "model"
        self.pictures = self.path / "pictures"
        self.measurements = self.path / "measurements"
        self.validation_file = self.path / "validation.json"
        self.entry_root = self.path / "entry"
        self.package = self.path / "package"
        self.log_file = self.path / "log.txt"

    @property
    def checkpoint_file(self) -> Path:
        """The one file in `checkpoint/`."""
        (file,) = self.checkpoint_folder.iterdir()
        return file

    @property
    def exists(self) -> bool:
        return (self.path / "job.json").is_file()

    def zip_file(self, record: JobRecord) -> Path:
        return self.path / f"{record.request.name}-{record.version}.zip"

    def record(self) -> JobRecord:
        """Raises BadInput where the folder holds no job."""
        if not self.exists:
            raise BadInput(f"{self.path} holds no export job.")
        return JobRecord.load(self.path / "job.json")

    def create(self, record: JobRecord) -> None:
        self.write("job.json", record.to_json())

    def foreign_files(self) -> list[str]:
        """What lies here and is no job's doing; drafts and the lock are what a killed job leaves first."""
        if self.exists or not self.path.exists():
            return []
        ours = {".lock", ".job.json.draft"}
        return sorted(path.name for path in self.path.iterdir() if path.name not in ours)

    def checkpoint(self) -> CheckpointFacts:
        return CheckpointFacts.load(self.path / "checkpoint.json")

    def model(self) -> ModelFacts:
        return ModelFacts.load(self.model_folder / "model.json")

    def state(self) -> State:
        path = self.path / "state.json"
        return State.load(path) if path.exists() else State()

    def save_step(self, name: str, record: StepRecord) -> None:
        self.write("state.json", State(steps={**self.state().steps, name: record}).to_json())

    def forget_steps(self, names: Iterable[str]) -> None:
        forgotten = set(names)
        steps = {name: record for name, record in self.state().steps.items() if name not in forgotten}
        self.write("state.json", State(steps=steps).to_json())

    def write(self, relative: str | Path, content: bytes) -> Path:
        """Write one file, whole or not at all."""
        path = self.path / relative
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_name(f".{path.name}.draft")
            remove(draft)
            with draft.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        return path

    @contextlib.contextmanager
    def drafting(self, folder: Path) -> Iterator[Path]:
        """An empty folder to fill; it takes `folder`'s place when the block ends without an error."""
        draft = folder.with_name(f".{folder.name}.draft")
        with writing(folder):
            remove(draft)
            draft.mkdir(parents=True)
            try:
                yield draft
                remove(folder)
                draft.rename(folder)
            except BaseException:
                remove(draft)
                raise

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Raises BadInput where another process works on this job. The kernel lets go with its owner."""
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            raise BadInput(f"Another process is working on {self.path}.") from None
        try:
            yield
        finally:
            os.close(file)

    def tidy(self) -> None:
        """Clear away what a killed process left half-written. Raises ExportError for links and the like."""
        for path, _ in walk(self.path, descend=lambda folder: not _is_draft(folder)):
            mode = path.lstat().st_mode
            if _is_draft(path):
                remove(path)
            elif not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise ExportError(f"{path} is neither a file nor a folder: the job cannot be trusted.")

    def digest(self, results: Iterable[str]) -> str | None:
        """SHA-256 over names and contents of results (files or folders); None where one is missing."""
        whole = hashlib.sha256()
        for result in sorted(results):
            path = self.path / result
            if not path.exists():
                return None
            files = sorted(path.rglob("*")) if path.is_dir() else [path]
            for file in files:
                if file.is_file():
                    name = os.fsencode(file.relative_to(self.path))
                    whole.update(name + f"\0{sha256_of(file)}\n".encode())
        return whole.hexdigest()


def _is_draft(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(".draft")


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
