"""The sample model that is committed: small, and what its metadata says it is."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "export_pipeline" / "sample" / "shapes.pt"
MOST_BYTES = 6_000_000


def test_the_model_and_its_checkpoint_are_small() -> None:
    files = [path for path in (ROOT / "model_repo").rglob("*") if path.is_file()]

    assert len(files) > 1
    assert sum(path.stat().st_size for path in [*files, CHECKPOINT]) <= MOST_BYTES


def test_the_metadata_names_the_checkpoint_that_is_committed() -> None:
    metadata = json.loads((ROOT / "model_repo" / "shapes" / "metadata.json").read_text())

    stated = metadata["model_info"]["source_checkpoint_sha256"]
    assert hashlib.sha256(CHECKPOINT.read_bytes()).hexdigest() == stated


def test_the_metadata_names_the_model_file_that_is_committed() -> None:
    shapes = ROOT / "model_repo" / "shapes"
    info = json.loads((shapes / "metadata.json").read_text())["model_info"]
    model = shapes / info["version"] / info["model_file"]["name"]

    assert hashlib.sha256(model.read_bytes()).hexdigest() == info["model_file"]["sha256"]
    assert model.stat().st_size == info["model_file"]["size_bytes"]


@pytest.mark.parametrize("part", ["1/model.onnx", "config.pbtxt", "metadata.json", "README.md", "sample.jpg"])
def test_the_sample_is_whole(part: str) -> None:
    assert (ROOT / "model_repo" / "shapes" / part).stat().st_size > 0
