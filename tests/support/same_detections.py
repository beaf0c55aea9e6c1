"""What it means that two detectors found the same."""

from __future__ import annotations

from typing import Any

import pytest

from export_pipeline import reference
from export_pipeline.reference import Detection

MIN_IOU = 0.99
MAX_CONFIDENCE_DIFFERENCE = 0.002


def from_json(prediction: dict[str, Any]) -> Detection:
    """As the golden file and the gateway's answers spell it."""
    x_min, y_min, x_max, y_max = prediction["bbox"]
    return Detection((x_min, y_min, x_max, y_max), prediction["confidence"], prediction["class_id"])


def assert_same_detections(found: list[Detection], expected: list[Detection]) -> None:
    """Same count, and one to one: same class, IoU and confidence within the tolerances.

    Not by rank: two confidences that differ by less than the tolerance may change places.
    """
    assert len(found) == len(expected)
    left = list(expected)
    for one in found:
        partner = max(
            left, key=lambda other: (other.class_id == one.class_id, reference.iou(other.box, one.box))
        )
        assert partner.class_id == one.class_id
        assert reference.iou(partner.box, one.box) >= MIN_IOU
        assert partner.confidence == pytest.approx(one.confidence, abs=MAX_CONFIDENCE_DIFFERENCE)
        left.remove(partner)
