"""Mean average precision: one metric for the checkpoint, the exported file and the gateway.

COCO's, with Ultralytics' interpolation: predictions take the labels of their class in the order of their
confidence, at IoU 0.50, 0.55, … 0.95; precision is read at 101 recalls from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export_pipeline.certificate.boxes import pairwise_iou

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True, slots=True)
class Found:
    """One picture: n predictions, most confident first, and m labels. Boxes in one and the same pixels."""

    xyxy: NDArray[np.float32]
    confidence: NDArray[np.float32]
    class_id: NDArray[np.int64]
    true_xyxy: NDArray[np.float32]
    true_class_id: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class MeanAveragePrecision:
    map50: float
    map50_95: float


def mean_average_precision(pictures: Sequence[Found]) -> MeanAveragePrecision:
    """Over the classes that have labels. Raises ValueError where there is not one label: nothing to find."""
    true_class_id = np.concatenate([np.empty(0, np.int64), *(each.true_class_id for each in pictures)])
    if not len(true_class_id):
        raise ValueError("no picture has a label")
    confidence = np.concatenate([each.confidence for each in pictures])
    class_id = np.concatenate([each.class_id for each in pictures])
    correct = np.concatenate([hits(each) for each in pictures])
    order = np.argsort(-confidence, kind="stable")
    precisions = np.array(
        [
            _class_precisions(correct[order][class_id[order] == wanted], label_count=int(count))
            for wanted, count in zip(*np.unique(true_class_id, return_counts=True), strict=True)
        ]
    )
    return MeanAveragePrecision(float(precisions[:, 0].mean()), float(precisions.mean()))


def hits(found: Found) -> NDArray[np.bool_]:
    """(n, 10) bool: whether each prediction finds a label that no better one has taken, at each IoU."""
    correct = np.zeros((len(found.class_id), len(IOU_THRESHOLDS)), np.bool_)
    if not correct.size or not len(found.true_class_id):
        return correct
    iou = pairwise_iou(found.true_xyxy, found.xyxy)
    iou *= found.true_class_id[:, None] == found.class_id[None]
    taken = np.zeros((len(found.true_class_id), len(IOU_THRESHOLDS)), np.bool_)
    levels = np.arange(len(IOU_THRESHOLDS))
    for index in np.flatnonzero((iou >= IOU_THRESHOLDS[0]).any(axis=0)):
        free = np.where(taken, 0, iou[:, index, None])
        best = free.argmax(axis=0)
        correct[index] = free[best, levels] >= IOU_THRESHOLDS
        taken[best, levels] |= correct[index]
    return correct


def _class_precisions(correct: NDArray[np.bool_], *, label_count: int) -> NDArray[np.float64]:
    """(10,): average precision of one class at each IoU; `correct` (n, 10), most confident first."""
    if not len(correct):
        return np.zeros(len(IOU_THRESHOLDS))
    true_positives = correct.cumsum(axis=0)
    recall = true_positives / label_count
    precision = true_positives / np.arange(1, len(correct) + 1)[:, None]
    return np.array([_area_under(recall[:, level], precision[:, level]) for level in range(correct.shape[1])])


def _area_under(recall: NDArray[Any], precision: NDArray[Any]) -> float:
    """Where nothing is found any more, precision falls to 0 at once."""
    recalls = np.concatenate([[0.0], recall, [recall[-1]], [1.0]])
    precisions = np.concatenate([[1.0], precision, [0.0], [0.0]])
    envelope = np.maximum.accumulate(precisions[::-1])[::-1]
    at_recalls = np.interp(RECALLS, recalls, envelope)
    return float(((at_recalls[1:] + at_recalls[:-1]) / 2 * np.diff(RECALLS)).sum())
