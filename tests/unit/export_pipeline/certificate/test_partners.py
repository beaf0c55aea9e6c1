from __future__ import annotations

import numpy as np
import pytest

from export_pipeline.certificate.partners import Asked, find_partners, is_at_threshold
from export_pipeline.certificate.tolerances import tolerances_for
from export_pipeline.predictions import Predictions

ASKED = Asked(confidence=0.25, iou=0.45, max_detections=300)
JUST_ONE = ASKED.model_copy(update={"max_detections": 1})
STRICT = tolerances_for("fp32")

Row = tuple[int, float, tuple[float, float, float, float]]
HERE = (10.0, 10.0, 50.0, 50.0)
NEAR = (10.0, 10.0, 50.0, 48.0)  # IoU 0.95
THERE = (100.0, 100.0, 150.0, 150.0)


def boxes(*rows: Row) -> Predictions:
    return Predictions(
        320,
        320,
        np.array([confidence for _, confidence, _ in rows], np.float32),
        np.array([class_id for class_id, _, _ in rows], np.int64),
        np.array([xyxy for _, _, xyxy in rows], np.float32).reshape(-1, 4),
    )


def classes(*rows: tuple[int, float]) -> Predictions:
    return Predictions(
        320,
        320,
        np.array([confidence for _, confidence in rows], np.float32),
        np.array([class_id for class_id, _ in rows], np.int64),
        None,
    )


@pytest.mark.parametrize(
    ("expected", "answered", "pairs", "other_class", "alone"),
    [
        (boxes(), boxes(), [], (), ((), ())),
        (boxes((0, 0.9, HERE)), boxes(), [], (), ((0,), ())),
        (boxes(), boxes((0, 0.9, HERE)), [], (), ((), (0,))),
        (boxes((0, 0.9, HERE)), boxes((0, 0.8, NEAR)), [(0, 0)], (), ((), ())),
        (boxes((0, 0.9, HERE)), boxes((0, 0.9, THERE)), [], (), ((0,), (0,))),
        (boxes((0, 0.9, HERE)), boxes((1, 0.9, HERE)), [], ((0, 0),), ((), ())),
        # not by rank: two confidences may change places
        (
            boxes((0, 0.9, HERE), (0, 0.8999, THERE)),
            boxes((0, 0.9, THERE), (0, 0.8999, HERE)),
            [(0, 1), (1, 0)],
            (),
            ((), ()),
        ),
        # of two in one place, the one that is more alike; the other may not have its partner as well
        (boxes((0, 0.9, HERE)), boxes((0, 0.9, NEAR), (0, 0.9, HERE)), [(0, 1)], (), ((), (0,))),
        (boxes((0, 0.9, HERE)), boxes((0, 0.5, HERE), (0, 0.9, HERE)), [(0, 1)], (), ((), (0,))),
        # a class of its own comes before place: the same class further off is the partner
        (boxes((0, 0.9, HERE)), boxes((1, 0.9, HERE), (0, 0.9, NEAR)), [(0, 1)], (), ((), (0,))),
        # clipped to a line at the edge of the picture, a box has no area and still is where it was
        (boxes((0, 0.9, (0, 5, 0, 9))), boxes((0, 0.9, (0, 5, 0, 9))), [(0, 0)], (), ((), ())),
        (boxes((0, 0.9, HERE)), boxes((0, 0.9, (np.nan, 10, 50, 50))), [], (), ((0,), (0,))),
        (classes(), classes(), [], (), ((), ())),
        (classes((3, 0.9), (1, 0.1)), classes((1, 0.5), (3, 0.5)), [(0, 1), (1, 0)], (), ((), ())),
        (classes((3, 0.9)), classes((1, 0.9)), [], (), ((0,), (0,))),
    ],
)
def test_partners_are_of_one_class_in_one_place(
    expected: Predictions,
    answered: Predictions,
    pairs: list[tuple[int, int]],
    other_class: tuple[tuple[int, int], ...],
    alone: tuple[tuple[int, ...], tuple[int, ...]],
) -> None:
    found = find_partners(expected, answered)

    assert sorted(zip(found.expected.tolist(), found.answered.tolist(), strict=True)) == pairs
    assert found.other_class == other_class
    assert (found.alone_expected, found.alone_answered) == alone


@pytest.mark.parametrize(
    ("side", "other_side", "asked", "excused"),
    [
        (boxes((0, 0.2509, HERE)), boxes(), ASKED, True),
        (boxes((0, 0.2511, HERE)), boxes(), ASKED, False),
        (boxes((0, 0.9, HERE)), boxes(), ASKED, False),
        # the other side is full, and its last one is hardly less confident
        (
            boxes((0, 0.9, HERE)),
            boxes((0, 0.8995, THERE)),
            JUST_ONE,
            True,
        ),
        (
            boxes((0, 0.9, HERE)),
            boxes((0, 0.7, THERE)),
            JUST_ONE,
            False,
        ),
        (boxes((0, 0.9, HERE)), boxes((0, 0.8995, THERE)), ASKED, False),
        # a better one of its class overlaps it by just about the threshold
        (boxes((0, 0.9, HERE)), boxes((0, 0.95, (10, 25.18, 50, 65.18))), ASKED, True),
        (boxes((0, 0.9, HERE)), boxes((1, 0.95, (10, 25.18, 50, 65.18))), ASKED, False),  # not of its class
        (
            boxes((0, 0.9, HERE)),
            boxes((0, 0.85, (10, 25.18, 50, 65.18))),
            ASKED,
            False,
        ),  # it would come first
        (boxes((0, 0.9, HERE)), boxes((0, 0.95, (10, 25.4, 50, 65.4))), ASKED, False),  # overlaps too little
        (boxes((0, 0.9, HERE)), boxes((0, 0.95, (10, 24.9, 50, 64.9))), ASKED, False),  # overlaps too much
        (
            boxes((0, 0.9, HERE)),
            boxes((0, 0.95, (10, 25.18, 50, 65.18))),
            Asked(confidence=0.25, iou=None, max_detections=300),
            False,
        ),
        (classes((0, 0.1)), classes((1, 0.1)), Asked(confidence=0, iou=None, max_detections=1), True),
        (classes((0, 0.1)), classes((1, 0.05)), Asked(confidence=0, iou=None, max_detections=1), False),
    ],
)
def test_only_what_hangs_on_a_threshold_may_be_missing(
    side: Predictions, other_side: Predictions, asked: Asked, excused: bool
) -> None:
    assert is_at_threshold(0, side, other_side, asked, STRICT) is excused


def test_thresholds_that_are_in_the_graph_are_asked_of_nobody() -> None:
    asked = Asked(confidence=0.25, iou=0.45, max_detections=300, in_graph=True)

    assert asked.options() == {}


def test_a_model_without_suppression_is_asked_no_iou_threshold() -> None:
    assert Asked(confidence=0.25, iou=None, max_detections=5).options() == {
        "confidence_threshold": 0.25,
        "max_detections": 5,
    }
