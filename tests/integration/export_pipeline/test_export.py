"""The sample, exported and published by the command, as anybody would."""

from __future__ import annotations

import json
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from export_pipeline.api import export
from export_pipeline.environment import ensure_environment
from export_pipeline.job import JobFolder
from export_pipeline.pipeline import STAGES, steps_of
from export_pipeline.request import read_request
from tests.support.export_command import Command
from tests.support.exports import (
    GOLDEN_PICTURES,
    NAME,
    ROOT,
    SAMPLE_CHECKPOINT,
    FinishedExport,
    export_process,
    half_written,
    run_arguments,
    snapshot,
)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capsys)


@pytest.mark.timeout(240)
def test_every_stage_is_done_and_said(finished_export: FinishedExport) -> None:
    steps = [step.name for step in steps_of(finished_export.job.record())]

    assert finished_export.ended.steps("began") == finished_export.ended.steps("done") == steps
    result = finished_export.ended.result
    assert result is not None
    assert list(result["seconds"]) == list(STAGES)
    assert result["package"] == str(finished_export.package)
    assert (result["published"], result["version"]) == (str(finished_export.entry), 1)
    assert result["certificate"]["passed"] is True
    assert set(result["certificate"]["paths"]) == {"file", "gateway"}
    assert result["certificate"]["pictures"] == len(list(finished_export.pictures.iterdir()))
    assert result["certificate"]["predictions"] > 0


def test_the_entry_is_published_as_it_was_made(finished_export: FinishedExport) -> None:
    assert snapshot(finished_export.entry) == snapshot(finished_export.job.entry_root / NAME)
    assert half_written(finished_export.repository) == half_written(finished_export.job.path) == []


def test_the_package_is_in_order(finished_export: FinishedExport, command: Command) -> None:
    ended = command("verify", str(finished_export.package), "--json")

    report = json.loads(ended.out)
    assert ended.exit_code == 0
    assert (report["model_name"], report["version"], report["certified"]) == (NAME, "1", True)
    assert report["checkpoint_sha256"] == finished_export.job.checkpoint().sha256


def test_a_package_that_was_tampered_with_is_not(
    finished_export: FinishedExport, command: Command, tmp_path: Path
) -> None:
    with zipfile.ZipFile(finished_export.package) as whole, zipfile.ZipFile(tmp_path / "it.zip", "w") as bad:
        for member in whole.infolist():
            content = whole.read(member)
            bad.writestr(member, content[:-1] + b"!" if member.filename.endswith("model.onnx") else content)

    ended = command("verify", str(tmp_path / "it.zip"))

    assert ended.exit_code == 4
    assert "model.onnx" in ended.sentence


def test_the_version_is_listed_and_served(finished_export: FinishedExport, command: Command) -> None:
    listed = json.loads(
        command("versions", NAME, "--repository", str(finished_export.repository), "--json").out
    )

    assert [(each["version"], each["is_default"], each["passed"]) for each in listed] == [(1, True, True)]


def test_the_same_command_again_finds_it_done(finished_export: FinishedExport) -> None:
    before = snapshot(finished_export.job.path), snapshot(finished_export.repository)

    ended = export_process(
        run_arguments(finished_export.job.path, finished_export.repository, finished_export.pictures)
    )

    assert ended.exit_code == 0
    assert ended.result == finished_export.ended.result
    assert ended.steps("done_before") == finished_export.ended.steps("done")
    assert ended.steps("began") == []
    assert (snapshot(finished_export.job.path), snapshot(finished_export.repository)) == before


SAMPLE_OPTIONS: dict[str, dict[str, Any]] = {
    "oldest-opset": {"opset_version": 11, "imgsz": 320},
    "half-with-suppression": {"opset_version": 20, "precision": "fp16", "embed_nms": True, "imgsz": 320},
    "fixed-and-wide": {"dynamic_axes": False, "max_batch_size": 1, "imgsz": (320, 192)},
}
MAKE_YOLO26 = """
import sys
from pathlib import Path
from tests.torch.networks import make_network, save_checkpoint

save_checkpoint(Path(sys.argv[1]), make_network("yolo26n", "detection"))
"""


@pytest.fixture(scope="module")
def two_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    for name in ("landscape.jpg", "overlap_two_classes.jpg"):
        shutil.copy(GOLDEN_PICTURES / name, folder)
    return folder


@pytest.fixture(scope="module")
def yolo26(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose end-to-end head finds something in anything; weights drawn at random."""
    checkpoint = tmp_path_factory.mktemp("yolo26") / "best.pt"
    python = ensure_environment(print)
    subprocess.run([python, "-c", MAKE_YOLO26, checkpoint], cwd=ROOT, timeout=120, check=True)
    return checkpoint


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", [*SAMPLE_OPTIONS, "yolo26"])
def test_other_real_exports_pass_the_whole_pipeline(
    name: str, two_pictures: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    checkpoint, options = SAMPLE_CHECKPOINT, SAMPLE_OPTIONS.get(name)
    if options is None:
        checkpoint, options = request.getfixturevalue("yolo26"), {"head": "end_to_end", "imgsz": 64}
    repository = tmp_path / "model_repo"
    repository.mkdir()
    asked = {
        "checkpoint": str(checkpoint),
        "name": name,
        "publish": repository,
        "export_config": options,
        "validation_config": {"pictures": two_pictures},
    }

    result = export(read_request(asked), tmp_path / "job")

    assert result.certificate is not None
    assert set(result.certificate["paths"]) == {"file", "gateway"}
    assert [path["unmatched"] for path in result.certificate["paths"].values()] == [0, 0]
    assert result.certificate["predictions"] > 0
    assert result.published == repository / name
    model = JobFolder(tmp_path / "job").model()
    assert model.opset_version == options.get("opset_version", 17)
    assert (model.head == "yolo_end_to_end") == ("embed_nms" in options or name == "yolo26")
    assert model.inputs[0].shape[0] == (-1 if options.get("dynamic_axes", True) else 1)
