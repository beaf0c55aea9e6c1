"""The committed sample model is what this pipeline makes of the committed checkpoint."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.support.exports import NAME, ROOT, FinishedExport

COMMITTED = ROOT / "model_repo" / NAME
AFTER_REBUILDING = "`make sample` rebuilds it"

pytestmark = pytest.mark.timeout(240)


def test_the_graph_is_the_same_and_its_weights_are(finished_export: FinishedExport) -> None:
    committed, made = (
        onnx.load(entry / "1" / "model.onnx").graph for entry in (COMMITTED, finished_export.entry)
    )

    assert _structure(committed) == _structure(made), AFTER_REBUILDING
    weights = {each.name: numpy_helper.to_array(each) for each in made.initializer}
    assert len(weights) > 50
    for each in committed.initializer:
        np.testing.assert_allclose(
            numpy_helper.to_array(each), weights[each.name], rtol=1e-6, err_msg=each.name
        )


def _structure(graph: Any) -> list[object]:
    """All of a graph but its weights."""
    return [
        *([(node.op_type, list(node.input), list(node.output), str(node.attribute)) for node in graph.node]),
        *((each.name, each.data_type, list(each.dims)) for each in graph.initializer),
        *(str(each) for each in (*graph.input, *graph.output)),
    ]


def test_the_contract_is_the_same_but_for_what_is_measured(finished_export: FinishedExport) -> None:
    assert _unmeasured(COMMITTED) == _unmeasured(finished_export.entry), AFTER_REBUILDING


def _unmeasured(entry: Path) -> dict[str, Any]:
    metadata: dict[str, Any] = json.loads((entry / "metadata.json").read_bytes())
    for measured in ("performance", "validation"):
        assert metadata.pop(measured)
    # Weights may differ in their last digit where another processor made them.
    del metadata["model_info"]["model_file"]["sha256"]
    return metadata


def test_triton_is_told_the_same(finished_export: FinishedExport) -> None:
    for place in (".", "1"):
        committed, made = (
            (entry / place / "config.pbtxt").read_text() for entry in (COMMITTED, finished_export.entry)
        )
        assert committed == made, AFTER_REBUILDING


def test_it_is_certified_on_golden_pictures_and_labelled_scenes() -> None:
    metadata = json.loads((COMMITTED / "metadata.json").read_bytes())
    validation, model_file = metadata["validation"], metadata["model_info"]["model_file"]

    assert (COMMITTED / "1" / "metadata.json").read_bytes() == (COMMITTED / "metadata.json").read_bytes()
    for name, sha256 in (
        ("validation.json", validation["report_sha256"]),
        ("model.onnx", model_file["sha256"]),
    ):
        assert hashlib.sha256((COMMITTED / "1" / name).read_bytes()).hexdigest() == sha256
    assert set(validation["paths"]) == {"file", "gateway"}
    assert validation["pictures"] == len(list((ROOT / "tests" / "golden" / "pictures").iterdir()))
    assert validation["accuracy"]["pictures"] == 100
    for figures in validation["accuracy"]["metrics"].values():
        assert set(figures) == {"checkpoint", "file", "gateway"}


def test_it_is_made_of_the_committed_checkpoint() -> None:
    checkpoint = (ROOT / "export_pipeline" / "sample" / "shapes.pt").read_bytes()
    metadata = json.loads((COMMITTED / "metadata.json").read_bytes())

    assert metadata["model_info"]["source_checkpoint_sha256"] == hashlib.sha256(checkpoint).hexdigest()
