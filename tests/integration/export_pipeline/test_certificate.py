"""The certificate's third path: a real gateway and a real Triton answer the golden pictures over HTTP."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from onnx import helper, numpy_helper

from export_pipeline.certificate.measurements import Golden, Local, gateway_folder, load_served
from export_pipeline.certificate.report import load_certificate, summary
from export_pipeline.certificate.tensors import TensorAgreement
from export_pipeline.errors import ExportError, ValidationFailed
from export_pipeline.job import JobFolder
from export_pipeline.predictions import load_predictions
from export_pipeline.stages.validate import judge, serve
from tests.support.export_jobs import make_job
from tests.support.exports import HANDFUL, FinishedExport


def say(message: str, fraction: float | None = None) -> None:
    pass


@pytest.fixture
def copied(finished_export: FinishedExport, tmp_path: Path) -> JobFolder:
    """The finished job, to spoil."""
    job = JobFolder(tmp_path / "job")
    shutil.copytree(finished_export.job.path, job.path)
    return job


def test_the_gateway_answers_as_the_checkpoint_and_the_file_do(finished_export: FinishedExport) -> None:
    certificate = load_certificate(finished_export.job)

    file, gateway = certificate.paths["file"], certificate.paths["gateway"]
    assert certificate.passed
    assert certificate.notes == ()
    assert certificate.gateway.served
    assert certificate.gateway.transport == "http"
    assert certificate.pictures.count == gateway.pictures == len(HANDFUL)
    assert gateway.predictions == gateway.matched == file.matched > 10
    assert gateway.unmatched == gateway.class_disagreements == 0
    assert gateway.iou_min is not None
    assert gateway.iou_min > 0.999
    assert gateway.confidence_max is not None
    assert gateway.confidence_max < 1e-4


def test_what_is_published_sums_it_up(finished_export: FinishedExport) -> None:
    metadata = json.loads((finished_export.entry / "metadata.json").read_bytes())
    report = finished_export.entry / "1" / "validation.json"

    assert metadata["validation"] == summary(load_certificate(finished_export.job))
    assert metadata["validation"]["report_sha256"] == hashlib.sha256(report.read_bytes()).hexdigest()
    assert metadata["performance"]["latency_ms"]["p50"] > 0


def test_measuring_again_gives_the_same_certificate_and_leaves_nothing_running(copied: JobFolder) -> None:
    first = copied.validation_file.read_bytes()

    serve(copied, copied.record(), say)
    judge(copied, copied.record(), say)

    assert copied.validation_file.read_bytes() == first
    assert _running_on(copied) == []
    assert sorted(path.name for path in gateway_folder(copied).iterdir()) == ["golden.npz", "served.json"]


def _running_on(job: JobFolder) -> list[list[str]]:
    """Command lines that name the job's folder, as the trial's and its Triton's do."""
    command_lines = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return [words for words in command_lines if any(str(job.path) in word for word in words)]


def test_a_gateway_that_answers_otherwise_fails_the_certificate(copied: JobFolder) -> None:
    """Another file than was measured here reaches the gateway, and only its path can see it."""
    _spoil(copied)

    serve(copied, copied.record(), say)
    with pytest.raises(ValidationFailed, match="The gateway does not answer as the checkpoint does"):
        judge(copied, copied.record(), say)

    certificate = load_certificate(copied)
    assert certificate.paths["file"].passed
    assert not certificate.paths["gateway"].passed
    assert len(load_predictions(gateway_folder(copied) / "golden.npz")) == len(HANDFUL)


def _spoil(job: JobFolder) -> None:
    """Squares and circles change places in the model file; its facts name it as it is now."""
    facts = job.model()
    path = job.model_folder / facts.file
    model = onnx.load(path)
    output = model.graph.output[0].name
    for node in model.graph.node:
        for index, name in enumerate(node.output):
            if name == output:
                node.output[index] = "before"
    order = np.array([0, 1, 2, 3, 5, 4, 6, 7], np.int64)
    model.graph.initializer.append(numpy_helper.from_array(order, "order"))
    model.graph.node.append(helper.make_node("Gather", ["before", "order"], [output], axis=1))
    _replace_model(job, model.SerializeToString())


def _replace_model(job: JobFolder, content: bytes) -> None:
    facts = job.model()
    (job.model_folder / facts.file).write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    changed = facts.model_copy(update={"sha256": sha256, "size_bytes": len(content)})
    job.write("model/model.json", changed.to_json())


def test_a_golden_picture_that_the_gateway_refuses_fails_the_certificate_by_its_name(
    copied: JobFolder,
) -> None:
    picture = copied.pictures / "landscape.jpg"
    picture.write_bytes(picture.read_bytes()[:1000])

    serve(copied, copied.record(), say)

    assert load_served(copied).refusals.keys() == {"landscape.jpg"}
    with pytest.raises(ValidationFailed, match=r"The gateway refused landscape\.jpg: 422 image_undecodable"):
        judge(copied, copied.record(), say)


def test_a_model_that_triton_cannot_load_fails_the_certificate_with_its_reason(copied: JobFolder) -> None:
    _replace_model(copied, b"no graph at all")

    serve(copied, copied.record(), say)

    with pytest.raises(ValidationFailed, match=r"The gateway cannot load the model: .*INVALID_PROTOBUF"):
        judge(copied, copied.record(), say)
    assert not load_certificate(copied).gateway.loadable


@pytest.mark.parametrize("change", ["fewer", "more"])
def test_the_gateway_is_asked_about_the_pictures_that_were_measured(copied: JobFolder, change: str) -> None:
    if change == "fewer":
        (copied.pictures / "tiny.png").unlink()
    else:
        shutil.copy(copied.pictures / "tiny.png", copied.pictures / "more.png")

    with pytest.raises(ExportError, match=rf"pictures; {len(HANDFUL)} were measured"):
        serve(copied, copied.record(), say)


def test_a_task_that_the_gateway_does_not_serve_is_noted_with_its_reason(tmp_path: Path) -> None:
    folder, record = make_job(tmp_path / "job", "segmentation")
    golden = Golden(source="-", count=0, asked=None, lowered=False)
    tensors = TensorAgreement(batch_sizes=(), parts=(), passed=False)
    local = Local(golden=golden, dataset=None, tensors=tensors, versions={})
    folder.write("measurements/local/local.json", local.to_json())

    serve(folder, record, say)

    served = load_served(folder)
    assert not served.served
    assert served.reason is not None
    assert "segmentation" in served.reason
