"""The package of the sample model, unpacked where nothing but its own requirements is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from export_pipeline.facts import CheckpointFacts, ModelFacts
from export_pipeline.packaging.verify import verify_package
from tests.support.export_jobs import certify, make_job
from tests.support.packages import unzipped, write_package
from tests.support.same_detections import assert_same_detections, from_json

REPOSITORY = Path(__file__).parents[3]
SHAPES = REPOSITORY / "model_repo/shapes"
PICTURES = REPOSITORY / "tests/golden/pictures"
GOLDEN: dict[str, Any] = json.loads((REPOSITORY / "tests/golden/predictions.json").read_bytes())["pictures"]
INSTALL_TIMEOUT_SECONDS = 300.0
RUN_TIMEOUT_SECONDS = 60.0
OUTSIDE = ("torch", "ultralytics", "serving", "export_pipeline", "tritonclient", "onnx")


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample model's, as the pipeline makes it; unpacked from its zip."""
    content = (SHAPES / "1/model.onnx").read_bytes()
    metadata = json.loads((SHAPES / "metadata.json").read_bytes())
    size = metadata["preprocessing"]["resize"]["size"]
    folder, record = make_job(tmp_path_factory.mktemp("job"), export_config={"imgsz": size})
    folder.write("model/model.onnx", content)
    folder.write("model/model.json", sample_facts(folder.model(), metadata).to_json())
    folder.write("checkpoint.json", sample_checkpoint(folder.checkpoint(), metadata).to_json())
    zipped = write_package(folder, record, validation=certify(folder))
    assert verify_package(zipped).certified
    return unzipped(zipped, tmp_path_factory.mktemp("unpacked"))


def sample_facts(made_up: ModelFacts, metadata: dict[str, Any]) -> ModelFacts:
    file = metadata["model_info"]["model_file"]
    return ModelFacts.model_validate(
        {
            **made_up.model_dump(),
            "sha256": file["sha256"],
            "size_bytes": file["size_bytes"],
            "resize": metadata["preprocessing"]["resize"],
            "inputs": metadata["input_spec"],
            "outputs": metadata["output_spec"],
        }
    )


def sample_checkpoint(made_up: CheckpointFacts, metadata: dict[str, Any]) -> CheckpointFacts:
    names = tuple(entry["name"] for entry in metadata["classes"])
    return made_up.model_copy(update={"class_names": names})


@pytest.fixture(scope="session")
def python(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a new environment with what the package asks for, in the versions that exports are made with."""
    environment = tmp_path_factory.mktemp("clean") / "venv"
    uv: list[str | Path] = [Path(sys.executable).with_name("uv"), "--quiet"]
    install: list[str | Path] = [
        "pip",
        "install",
        "--python",
        environment / "bin/python",
        "--link-mode",
        "hardlink",
    ]
    constraint = REPOSITORY / "export_pipeline/constraints.txt"
    requirements = package / "runtimes/python/requirements.txt"
    for command in (
        [*uv, "venv", "--python", sys.executable, environment],
        [*uv, *install, "--constraint", constraint, "--requirements", requirements],
    ):
        subprocess.run(command, check=True, timeout=INSTALL_TIMEOUT_SECONDS)
    return environment / "bin/python"


def run(python: Path, *arguments: Path | str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, *arguments],
        cwd=cwd,
        env={"PATH": os.environ["PATH"], "PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_SECONDS,
        check=False,
    )


def test_the_environment_is_clean(python: Path, tmp_path: Path) -> None:
    listed = run(
        python,
        "-c",
        f"import importlib.util as u; print([n for n in {OUTSIDE} if u.find_spec(n)])",
        cwd=tmp_path,
    )

    assert listed.stdout.strip() == "[]", listed.stderr


def test_its_example_finds_what_ultralytics_own_predict_finds(
    python: Path, package: Path, tmp_path: Path
) -> None:
    answered = run(
        python, package / "runtimes/python/example.py", *(PICTURES / name for name in GOLDEN), cwd=tmp_path
    )

    assert answered.returncode == 0, answered.stderr
    lines = [json.loads(line) for line in answered.stdout.splitlines()]
    assert [Path(line["picture"]).name for line in lines] == list(GOLDEN)
    for line, golden in zip(lines, GOLDEN.values(), strict=True):
        assert line["image"] == {"width": golden["width"], "height": golden["height"]}
        assert_same_detections(
            [from_json(entry) for entry in line["predictions"]],
            [from_json(entry) for entry in golden["predictions"]],
        )


def test_its_example_says_what_it_cannot_read(python: Path, package: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0")

    answered = run(python, package / "runtimes/python/example.py", tmp_path / "broken.jpg", cwd=tmp_path)

    assert answered.returncode == 1
    assert answered.stderr.strip() == f"{tmp_path / 'broken.jpg'}: The picture cannot be decoded."


def test_its_sums_are_in_order(package: Path) -> None:
    checked = subprocess.run(
        ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=package, check=False, timeout=60
    )

    assert checked.returncode == 0
