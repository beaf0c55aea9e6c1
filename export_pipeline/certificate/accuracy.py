"""Accuracy on a labelled data set, by one metric for the checkpoint, the exported file and the gateway."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from export_pipeline.certificate.average_precision import Found, mean_average_precision
from export_pipeline.certificate.measurements import DatasetMeasured
from export_pipeline.certificate.report import Accuracy, Path, Side
from export_pipeline.datasets import Dataset, LabelledPicture
from export_pipeline.metadata import TOP_K
from export_pipeline.predictions import Predictions, PredictionSet

COMPARABLE_MAP = 0.02
"""How far the framework's own mAP may be from ours before a note says so."""
BOXES_NOTE = (
    "Ultralytics' own validation counts a box once for each of its classes, every side here once for its "
    "best one, as predict does: its mAP is shown, not judged, and noted where it is off by more than "
    f"{COMPARABLE_MAP}."
)
CLASSES_NOTE = "Ultralytics' own validation has to count as many pictures right, but for one."


def measure_accuracy(
    dataset: Dataset,
    measured: DatasetMeasured,
    by_side: Mapping[Side, PredictionSet],
    accuracy_drop_max: float,
) -> Accuracy:
    """by_side: the checkpoint's predictions, and those of each path that there is, by the pictures' keys.

    A picture that a side said nothing of counts as one in which it found nothing.
    """
    metrics: dict[str, dict[Side, float]] = {}
    for side, predictions in by_side.items():
        for name, figure in _figures(dataset, predictions).items():
            metrics.setdefault(name, {})[side] = float(f"{figure:.6g}")
    judged = "top1" if "top1" in metrics else "mAP50-95"
    of_checkpoint = metrics[judged]["checkpoint"]
    drop: dict[Path, float] = {
        side: float(f"{of_checkpoint - figure:.6g}")
        for side, figure in metrics[judged].items()
        if side != "checkpoint"
    }
    return Accuracy(
        dataset=measured.name,
        dataset_sha256=measured.sha256,
        pictures=measured.pictures,
        asked=measured.asked,
        metrics=metrics,
        judged=judged,
        drop=drop,
        accuracy_drop_max=accuracy_drop_max,
        by_framework=measured.by_framework,
        by_framework_note=CLASSES_NOTE if judged == "top1" else BOXES_NOTE,
    )


def unlike_framework(accuracy: Accuracy) -> Iterator[str]:
    """Of the checkpoint, where the framework's own figures are further off than they may be."""
    may = 1 / accuracy.pictures + 1e-5 if accuracy.judged == "top1" else COMPARABLE_MAP
    for name, sides in accuracy.metrics.items():
        own = accuracy.by_framework.get(name)
        if own is not None and abs(own - sides["checkpoint"]) > may:
            ours = sides["checkpoint"]
            yield f"{name} of the checkpoint is {ours:.4f}, by its framework's own validation {own:.4f}."


def _figures(dataset: Dataset, predictions: PredictionSet) -> dict[str, float]:
    if dataset.pictures[0].xyxy is None:
        ranks = [_rank(picture, predictions.get(picture.key)) for picture in dataset.pictures]
        return {f"top{k}": float(np.mean([rank < k for rank in ranks])) for k in (1, TOP_K)}
    found = mean_average_precision(
        [_found(picture, predictions.get(picture.key)) for picture in dataset.pictures]
    )
    return {"mAP50": found.map50, "mAP50-95": found.map50_95}


def _rank(picture: LabelledPicture, predictions: Predictions | None) -> float:
    """Of the true class among those answered, from 0; infinite where it is not among them."""
    if predictions is None:
        return np.inf
    places = np.flatnonzero(predictions.class_id == picture.class_id[0])
    return float(places[0]) if len(places) else np.inf


def _found(picture: LabelledPicture, predictions: Predictions | None) -> Found:
    """Boxes in pixels of the picture; without predictions, whose size it is, in fractions of it."""
    assert picture.xyxy is not None
    if predictions is None or predictions.xyxy is None:
        nothing = np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int64)
        return Found(*nothing, picture.xyxy.astype(np.float32), picture.class_id)
    size = np.array([predictions.width, predictions.height] * 2)
    true_xyxy = (picture.xyxy * size).astype(np.float32)
    return Found(predictions.xyxy, predictions.confidence, predictions.class_id, true_xyxy, picture.class_id)
