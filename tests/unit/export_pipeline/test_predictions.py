from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export_pipeline import predictions
from export_pipeline.errors import ExportError
from export_pipeline.predictions import Predictions, load_predictions, save_predictions

RNG = np.random.default_rng(0)


def some(count: int, *, boxes: bool = True) -> Predictions:
    return Predictions(
        width=640,
        height=480,
        confidence=np.sort(RNG.random(count, np.float32))[::-1],
        class_id=RNG.integers(0, 9, count),
        xyxy=RNG.random((count, 4), np.float32) * 480 if boxes else None,
    )


def same(one: Predictions, other: Predictions) -> None:
    assert (one.width, one.height) == (other.width, other.height)
    np.testing.assert_array_equal(one.confidence, other.confidence)
    np.testing.assert_array_equal(one.class_id, other.class_id)
    np.testing.assert_array_equal(np.array(one.xyxy), np.array(other.xyxy))
    assert one.confidence.dtype == other.confidence.dtype
    assert one.class_id.dtype == other.class_id.dtype


@pytest.mark.parametrize("boxes", [True, False], ids=["boxes", "classes"])
@pytest.mark.parametrize("counts", [[], [0], [3], [2, 0, 5], [0, 0, 1]])
def test_predictions_are_read_as_they_were_written(tmp_path: Path, counts: list[int], boxes: bool) -> None:
    written = {f"{index}é.jpg": some(count, boxes=boxes) for index, count in enumerate(counts)}
    save_predictions(tmp_path / "it.npz", written)

    found = load_predictions(tmp_path / "it.npz")

    assert list(found) == sorted(written)
    for name, one in found.items():
        same(one, written[name])


def test_some_with_boxes_and_some_without_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="some have none"):
        save_predictions(tmp_path / "it.npz", {"a": some(1), "b": some(1, boxes=False)})


def _rewritten(path: Path, **changed: Any) -> None:
    with np.load(path) as arrays:
        content = {**arrays, **changed}
    np.savez(path, **{name: value for name, value in content.items() if value is not None})


@pytest.mark.parametrize(
    "changed",
    [
        {"confidence": None},
        {"counts": np.array([1, 1])},
        {"counts": np.array([4, -1])},
        {"counts": np.array([1.0, 2.0])},
        {"class_id": np.zeros(2, np.int64)},
        {"xyxy": np.zeros((3, 3), np.float32)},
        {"sizes_wh": np.zeros((2, 3), np.int64)},
        {"names": np.array([1, 2])},
        {"names": np.array(["a", object()], object)},
    ],
    ids=str,
)
def test_arrays_that_do_not_fit_together_are_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    path = tmp_path / "it.npz"
    save_predictions(path, {"a.jpg": some(1), "b.jpg": some(2)})
    load_predictions(path)
    _rewritten(path, **changed)

    with pytest.raises(ExportError, match="does not hold predictions"):
        load_predictions(path)


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"not a zip", None], ids=["empty", "cut", "text", "gone"]
)
def test_a_file_that_is_none_of_ours_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "it.npz").write_bytes(content)

    with pytest.raises(ExportError, match="does not hold predictions"):
        load_predictions(tmp_path / "it.npz")


def test_a_file_that_claims_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    save_predictions(tmp_path / "it.npz", {"a.jpg": some(1)})
    empty = io.BytesIO()
    np.save(empty, np.empty(0, np.float32))
    claim = empty.getvalue().replace(b"(0,), }" + b" " * 13, b"(35184372088832,), }")
    assert len(claim) == len(empty.getvalue())
    with zipfile.ZipFile(tmp_path / "it.npz") as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(tmp_path / "it.npz", "w") as new:
        for name, content in {**members, "confidence.npy": claim}.items():
            new.writestr(name, content)

    with pytest.raises(ExportError, match="does not hold predictions"):
        load_predictions(tmp_path / "it.npz")


def test_a_file_that_swells_past_the_bound_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictions, "MOST_BYTES", 100_000)
    with zipfile.ZipFile(tmp_path / "it.npz", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("names.npy", bytes(100_001))

    with pytest.raises(ExportError, match="more than 100000 bytes unpacked"):
        load_predictions(tmp_path / "it.npz")
