"""checkpoint.inspect and export.graph, on a job's folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from export_pipeline.errors import BadInput, Unsupported
from export_pipeline.job import JobFolder, JobRecord, sha256_of
from export_pipeline.request import ExportRequest
from export_pipeline.stages import checkpoint, export

SAMPLE = Path(__file__).parents[4] / "export_pipeline" / "sample" / "shapes.pt"


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    """With the sample checkpoint fetched."""
    job = JobFolder(tmp_path / "job")
    job.checkpoint_folder.mkdir(parents=True)
    shutil.copy(SAMPLE, job.checkpoint_folder)
    return job


def record(**export_config: Any) -> JobRecord:
    request = ExportRequest.model_validate(
        {"checkpoint": str(SAMPLE), "name": "shapes", "export_config": export_config}
    )
    return JobRecord(job_id="job", version=1, request=request)


class Said:
    def __init__(self) -> None:
        self.messages: list[str] = []

    def __call__(self, message: str, fraction: float | None = None) -> None:
        assert fraction is None or 0 <= fraction <= 1
        self.messages.append(message)


def test_inspect_leaves_what_the_checkpoint_is(folder: JobFolder) -> None:
    said = Said()
    checkpoint.inspect(folder, record(), said)
    facts = folder.checkpoint()
    assert facts.sha256 == sha256_of(SAMPLE)
    assert facts.size_bytes == SAMPLE.stat().st_size
    assert (facts.task_type, facts.heads) == ("detection", ("yolo_raw",))
    assert said.messages[-1] == "shapes: detection, 4 classes, 665,884 weights"


def test_fetch_copies_the_checkpoint_into_the_job(tmp_path: Path) -> None:
    job = JobFolder(tmp_path / "job")
    job.path.mkdir()
    checkpoint.fetch(job, record(), Said())
    assert job.checkpoint_file.name == "shapes.pt"
    assert sha256_of(job.checkpoint_file) == sha256_of(SAMPLE)


def test_export_leaves_the_model_and_what_it_is(folder: JobFolder) -> None:
    said = Said()
    export.export_graph(folder, record(imgsz=96, max_batch_size=4), said)
    facts = folder.model()
    file = folder.model_folder / facts.file
    assert sorted(path.name for path in folder.model_folder.iterdir()) == ["model.json", "model.onnx"]
    assert (facts.sha256, facts.size_bytes) == (sha256_of(file), file.stat().st_size)
    assert (facts.export_format, facts.precision, facts.opset_version, facts.max_batch_size) == (
        "onnx",
        "fp32",
        17,
        4,
    )
    assert (facts.preprocessing_embedded, facts.nms_embedded, facts.head) == (True, False, "yolo_raw")
    assert facts.resize.model_dump() == {
        "method": "letterbox",
        "size": (96, 96),
        "fill_value": 114,
        "stride": 32,
        "interpolation": "bilinear",
        "antialias": False,
    }
    assert [(one.name, one.shape, one.dtype, one.layout) for one in (*facts.inputs, *facts.outputs)] == [
        ("images", (-1, 96, 96, 3), "uint8", "NHWC"),
        ("predictions", (-1, 8, 189), "float32", "NCA"),
    ]
    assert facts.made_with.keys() == {"ultralytics", "torch", "onnx"}
    assert said.messages[-1].startswith("model.onnx: ")


@pytest.mark.parametrize(
    ("config", "kind", "message"),
    [
        ({"imgsz": 100}, BadInput, "not a multiple of the network's stride"),
        ({"head": "end_to_end"}, Unsupported, "has no end_to_end head"),
        ({"opset_version": 21}, Unsupported, "newer than 20"),
        ({"opset_version": 11, "embed_nms": True}, Unsupported, "embed_nms needs opset_version 12"),
    ],
    ids=str,
)
def test_an_export_that_cannot_be_made_leaves_nothing(
    folder: JobFolder, config: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        export.export_graph(folder, record(**config), Said())
    assert [path.name for path in folder.path.iterdir()] == ["checkpoint"]
