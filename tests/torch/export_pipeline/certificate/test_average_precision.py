"""Our metric against Ultralytics' own, on random boxes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from ultralytics.engine.validator import BaseValidator
from ultralytics.utils.metrics import ap_per_class, box_iou

from export_pipeline.certificate.average_precision import (
    IOU_THRESHOLDS,
    Found,
    hits,
    mean_average_precision,
)

CLASS_COUNT = 4


def random_picture(rng: np.random.Generator) -> Found:
    """Some labels; predictions near some of them, some of another class, some nowhere."""
    label_count = int(rng.integers(0, 12))
    corners = rng.uniform(0, 200, (label_count, 2))
    true_xyxy = np.concatenate([corners, corners + rng.uniform(5, 80, (label_count, 2))], axis=1)
    true_class_id = rng.integers(0, CLASS_COUNT, label_count)
    near = rng.integers(0, max(label_count, 1), 15 if label_count else 0)
    xyxy = np.concatenate([true_xyxy[near] + rng.normal(0, 4, (len(near), 4)), rng.uniform(0, 50, (3, 4))])
    xyxy[:, 2:] = np.maximum(xyxy[:, 2:], xyxy[:, :2] + 1)
    class_id = np.concatenate([true_class_id[near], rng.integers(0, CLASS_COUNT, 3)])
    mistaken = rng.random(len(class_id)) < 0.2
    class_id[mistaken] = rng.integers(0, CLASS_COUNT, int(mistaken.sum()))
    confidence = np.sort(rng.uniform(0, 1, len(class_id)))[::-1]
    return Found(
        xyxy.astype(np.float32),
        confidence.astype(np.float32),
        class_id.astype(np.int64),
        true_xyxy.astype(np.float32),
        true_class_id.astype(np.int64),
    )


def hits_of_ultralytics(found: Found) -> NDArray[np.bool_]:
    validator = BaseValidator.__new__(BaseValidator)
    validator.iouv = torch.linspace(0.5, 0.95, 10)
    if not len(found.true_class_id):
        return np.zeros((len(found.class_id), 10), np.bool_)
    iou = box_iou(torch.from_numpy(found.true_xyxy), torch.from_numpy(found.xyxy))
    correct: NDArray[np.bool_] = validator.match_predictions(
        torch.from_numpy(found.class_id), torch.from_numpy(found.true_class_id), iou
    ).numpy()
    return correct


@pytest.mark.parametrize("seed", range(8))
def test_the_metric_is_that_of_ultralytics(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pictures = [random_picture(rng) for _ in range(12)]

    correct = np.concatenate([hits_of_ultralytics(picture) for picture in pictures])
    precisions = ap_per_class(
        correct.astype(np.float64),
        np.concatenate([picture.confidence for picture in pictures]).astype(np.float64),
        np.concatenate([picture.class_id for picture in pictures]),
        np.concatenate([picture.true_class_id for picture in pictures]),
    )[5]
    measured = mean_average_precision(pictures)

    assert np.array_equal(np.concatenate([hits(picture) for picture in pictures]), correct)
    assert 0.1 < measured.map50_95 < measured.map50 < 0.95
    assert measured.map50 == pytest.approx(precisions[:, 0].mean(), abs=1e-9)
    assert measured.map50_95 == pytest.approx(precisions.mean(), abs=1e-9)


def test_the_thresholds_are_those_of_ultralytics() -> None:
    assert pytest.approx(torch.linspace(0.5, 0.95, 10).numpy(), abs=1e-7) == IOU_THRESHOLDS
