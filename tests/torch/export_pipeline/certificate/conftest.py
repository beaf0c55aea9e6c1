"""A job of the sample checkpoint, done up to the exported file, and copies of it to spoil."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from export_pipeline.certificate import speed
from export_pipeline.certificate.measurements import Served, gateway_folder
from export_pipeline.facts import ModelFacts
from export_pipeline.job import JobFolder, JobRecord
from export_pipeline.pipeline import run_here, steps_of
from export_pipeline.request import read_request

ROOT = Path(__file__).parents[4]
CHECKPOINT = ROOT / "export_pipeline/sample/shapes.pt"
PICTURES = ROOT / "tests/golden/pictures"
SOME = ("crowd.jpg", "no_object.jpg", "overlap_one_class.jpg", "portrait.jpg", "tiny.png")
UNSERVED = Served(served=False, reason="Not tried here.", transport=None, versions={}, refusals={})

Job = tuple[JobFolder, JobRecord]
Export = Callable[[Path, dict[str, Any]], Path]
Edit = Callable[[onnx.ModelProto], None]
MakeJob = Callable[..., Job]


@pytest.fixture(scope="session", autouse=True)
def quick() -> None:
    """Nobody reads the speed that is measured here."""
    speed.LATENCY_SECONDS = speed.THROUGHPUT_SECONDS = 0.0
    speed.RUNS_AT_LEAST = 1


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """The folder of a job done up to `model/`; the same request is exported once."""
    done: dict[str, Path] = {}

    def export(checkpoint: Path, config: dict[str, Any]) -> Path:
        key = json.dumps([str(checkpoint), config], sort_keys=True)
        if key not in done:
            folder = JobFolder(tmp_path_factory.mktemp("job"))
            folder.create(_record(checkpoint, config, {}))
            steps = [step for step in steps_of(folder.record()) if step.stage in {"checkpoint", "export"}]
            run_here(folder, folder.record(), steps, lambda event: None)
            done[key] = folder.path
        return done[key]

    return export


@pytest.fixture(scope="session")
def some_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the golden pictures those that tell the most for their size."""
    folder = tmp_path_factory.mktemp("pictures")
    for name in SOME:
        shutil.copyfile(PICTURES / name, folder / name)
    return folder


@pytest.fixture
def job(exported: Export, some_pictures: Path, tmp_path: Path) -> MakeJob:
    """A job of its own, exported, whose gateway part is put down as not tried."""

    def make(
        *,
        checkpoint: Path = CHECKPOINT,
        config: dict[str, Any] | None = None,
        edit: Edit | None = None,
        facts: dict[str, Any] | None = None,
        **validation_config: Any,
    ) -> Job:
        validation_config.setdefault("pictures", str(some_pictures))
        record = _record(checkpoint, config or {}, validation_config)
        source = exported(checkpoint, config or {})
        folder = JobFolder(tmp_path / "job")
        folder.create(record)
        for name in ("checkpoint", "model"):
            shutil.copytree(source / name, folder.path / name)
        shutil.copyfile(source / "checkpoint.json", folder.path / "checkpoint.json")
        folder.write(gateway_folder(folder).relative_to(folder.path) / "served.json", UNSERVED.to_json())
        if edit is not None:
            _edit(folder, edit)
        if facts is not None:
            changed = ModelFacts.model_validate({**folder.model().model_dump(), **facts})
            folder.write("model/model.json", changed.to_json())
        return folder, record

    return make


def _record(checkpoint: Path, config: dict[str, Any], validation_config: dict[str, Any]) -> JobRecord:
    values = {
        "checkpoint": str(checkpoint),
        "name": "shapes",
        "export_config": config,
        "validation_config": validation_config,
    }
    return JobRecord(job_id="1", version=1, request=read_request(values))


def _edit(folder: JobFolder, edit: Edit) -> None:
    """Change the exported file behind the pipeline's back; the facts name it as if it had always been so."""
    model = folder.model()
    path = folder.model_folder / model.file
    proto = onnx.load(path)
    edit(proto)
    content = proto.SerializeToString()
    path.write_bytes(content)
    facts = model.model_copy(
        update={"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
    )
    folder.write("model/model.json", facts.to_json())
