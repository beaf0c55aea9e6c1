"""Every stage of an export with nothing behind it: each step writes a little of what came before it.

They stand where the real ones stand, so that the order, the places and the records are the pipeline's own.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from export_pipeline.job import JobFolder, JobRecord
from export_pipeline.pipeline import Step, run_here, steps_of
from export_pipeline.progress import Event, Progress, Say
from export_pipeline.request import ExportRequest, read_request

METADATA: dict[str, Any] = {
    "schema_version": "1.1",
    "model_info": {
        "model_name": "cats",
        "version": "1",
        "task_type": "detection",
        "model_file": {"name": "model.onnx", "sha256": "0" * 64, "size_bytes": 1},
    },
    "validation": {
        "passed": True,
        "report_sha256": "0" * 64,
        "pictures": 18,
        "predictions": 93,
        "paths": {
            "file": {"tensor_max_abs": 0.00012, "iou_min": 0.998, "confidence_max": 0.0004, "unmatched": 0},
            "gateway": {"iou_min": 0.997, "confidence_max": 0.0006, "unmatched": 1},
        },
        "accuracy": {
            "dataset": "scenes",
            "pictures": 100,
            "metrics": {"mAP50": {"checkpoint": 0.95, "file": 0.949, "gateway": 0.948}},
        },
    },
}

Hook = Callable[[str], None]


def request(**changed: object) -> ExportRequest:
    return read_request({"checkpoint": "/nowhere/best.pt", "name": "cats", "publish": "/nowhere", **changed})


def new_job(path: Path, **changed: object) -> JobFolder:
    folder = JobFolder(path)
    folder.create(JobRecord(job_id="1" * 32, version=1, request=request(**changed)))
    return folder


class FakeStages:
    """`inside` is called in the middle of each step, its results half-written. ran: the steps, as they began.

    salt: what a step's results hold besides; another one is another result.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.inside: Hook = lambda _name: None
        self.ran: list[str] = []
        self.salt: dict[str, str] = {}
        for step in steps_of(JobRecord(job_id="1" * 32, version=1, request=request())):
            module_name, _, function = step.function.partition(":")
            name = f"export_pipeline.stages.{module_name}"
            if not isinstance(sys.modules.get(name), _FakeModule):
                monkeypatch.setitem(sys.modules, name, _FakeModule(name))
            setattr(sys.modules[name], function, self._function(step))

    def _function(self, step: Step) -> Callable[[JobFolder, JobRecord, Say], None]:
        def run(folder: JobFolder, record: JobRecord, say: Say) -> None:
            self.ran.append(step.name)
            content = f"{step.name} {self.salt.get(step.name, '')}".encode()
            if step.name == "checkpoint.fetch" and Path(record.request.checkpoint).exists():
                content = Path(record.request.checkpoint).read_bytes()
            pictures = record.request.validation_config.pictures
            for result in step.results:
                if "." in result:
                    self.inside(step.name)
                    folder.write(result, content)
                    continue
                with folder.drafting(folder.path / result) as draft:
                    (draft / "first").write_bytes(content)
                    self.inside(step.name)
                    if step.name == "validate.pictures" and pictures is not None:
                        shutil.copytree(pictures, draft, dirs_exist_ok=True)
                        (draft / "first").unlink()
                    elif step.name != "checkpoint.fetch":
                        (draft / "second").write_bytes(content)
                    if step.name == "package.package":
                        (draft / "metadata.json").write_text(json.dumps(METADATA))
            say("half done", 0.5)

        return run


class _FakeModule(ModuleType):
    pass


class HereExecutor:
    """Runs isolated steps in this process. groups: which it was asked for together."""

    def __init__(self, *, unconfined: bool = False) -> None:
        self.unconfined = unconfined
        self.groups: list[list[str]] = []

    def run(self, folder: JobFolder, record: JobRecord, steps: Sequence[str], progress: Progress) -> None:
        self.groups.append(list(steps))
        run_here(
            folder,
            record,
            [step for step in steps_of(record) if step.name in steps],
            progress,
            unconfined=self.unconfined,
        )


class Events:
    """Keeps what a job says; `at` is called with each event first."""

    def __init__(self, at: Callable[[Event], None] = lambda _event: None) -> None:
        self.seen: list[Event] = []
        self._at = at

    def __call__(self, event: Event) -> None:
        self._at(event)
        self.seen.append(event)

    def of_kind(self, kind: str) -> list[str]:
        return [event.step for event in self.seen if event.kind == kind]
