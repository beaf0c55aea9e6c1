from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from export_pipeline import reference
from export_pipeline.reference import Box, Detection
from serving.vision.nms import survivors

SMALL_GRID = st.integers(-3, 6).map(float)  # makes identical, touching, zero-area and inside-out boxes common
ANY_FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
BOXES = st.one_of(st.tuples(*[SMALL_GRID] * 4), st.tuples(*[ANY_FLOAT32] * 4))
DETECTIONS = st.lists(
    st.builds(Detection, BOXES, st.sampled_from([0.1, 0.5, 0.5, 0.9]), st.integers(0, 2)), max_size=30
)
THRESHOLDS = st.one_of(st.sampled_from([0.0, 0.1, 1 / 3, 0.45, 0.5, 1.0]), st.floats(0, 1))
HUGE: Box = (-3e38, -3e38, 3e38, 3e38)


def kept_by_survivors(
    best_first: list[Detection], groups: list[int], iou_threshold: float
) -> list[Detection]:
    boxes = np.array([detection.box for detection in best_first], np.float32).reshape(-1, 4)
    thresholds = np.full(len(best_first), iou_threshold)
    stays = survivors(boxes, np.array(groups, np.int64), thresholds)
    return [detection for detection, stay in zip(best_first, stays, strict=True) if stay]


@given(detections=DETECTIONS, iou_threshold=THRESHOLDS)
@example(detections=[Detection((0.0, 0.0, 1.0, 3.0), c, 0) for c in (0.9, 0.5)], iou_threshold=1 - 2**-53)
@example(
    detections=[Detection(HUGE, 0.9, 0), Detection(HUGE, 0.9, 1), Detection(HUGE, 0.1, 0)], iou_threshold=0.5
)
@example(detections=[Detection((3e38, 3e38, 3e38, 3e38), 0.9, c) for c in (0, 1, 1)], iou_threshold=0.0)
@settings(deadline=None)
def test_any_boxes_are_kept_as_the_oracle_keeps_them(
    detections: list[Detection], iou_threshold: float
) -> None:
    best_first = sorted(detections, key=lambda detection: -detection.confidence)
    classes = [detection.class_id for detection in best_first]

    kept = kept_by_survivors(best_first, classes, iou_threshold)

    assert kept == reference.nms(detections, iou_threshold, len(detections))


@given(detections=DETECTIONS, iou_threshold=THRESHOLDS)
@settings(deadline=None)
def test_one_group_for_all_makes_it_class_agnostic(detections: list[Detection], iou_threshold: float) -> None:
    best_first = sorted(detections, key=lambda detection: -detection.confidence)

    kept = kept_by_survivors(best_first, [0] * len(best_first), iou_threshold)

    assert kept == reference.nms(detections, iou_threshold, len(detections), class_agnostic=True)


@given(detections=DETECTIONS, thresholds=st.tuples(THRESHOLDS, THRESHOLDS, THRESHOLDS))
@settings(deadline=None)
def test_each_group_has_its_own_threshold(
    detections: list[Detection], thresholds: tuple[float, float, float]
) -> None:
    best_first = sorted(detections, key=lambda detection: -detection.confidence)
    boxes = np.array([detection.box for detection in best_first], np.float32).reshape(-1, 4)
    groups = np.array([detection.class_id for detection in best_first], np.int64)

    stays = survivors(boxes, groups, np.array(thresholds)[groups])

    for group, threshold in enumerate(thresholds):
        mine = [detection for detection in detections if detection.class_id == group]
        kept = [best_first[index] for index in (stays & (groups == group)).nonzero()[0]]
        assert kept == reference.nms(mine, threshold, len(mine))


def test_no_boxes_no_survivors() -> None:
    stays = survivors(np.empty((0, 4), np.float32), np.empty(0, np.int64), np.empty(0))

    assert stays.shape == (0,)
    assert stays.dtype == np.bool_


@pytest.mark.parametrize("class_count", [1, 80])
def test_thousands_of_crowded_boxes_in_more_than_one_chunk_of_pairs(class_count: int) -> None:
    rng = np.random.default_rng(5)
    corner, size = rng.uniform(0, 100, (1500, 2)), rng.uniform(5, 60, (1500, 2))
    boxes = np.concatenate([corner, corner + size], axis=1).astype(np.float32)
    classes = rng.integers(0, class_count, 1500)
    best_first = [
        Detection((float(x1), float(y1), float(x2), float(y2)), 1 - index / 2000, int(class_id))
        for index, ((x1, y1, x2, y2), class_id) in enumerate(zip(boxes, classes, strict=True))
    ]

    kept = kept_by_survivors(best_first, classes.tolist(), 0.45)

    assert kept == reference.nms(best_first, 0.45, len(best_first))


def test_a_chain_where_each_box_beats_only_the_next_keeps_every_other_one() -> None:
    left = np.arange(200, dtype=np.float32) * 3
    boxes = np.stack([left, np.zeros_like(left), left + 10, np.full_like(left, 10)], axis=1)

    stays = survivors(boxes, np.zeros(200, np.int64), np.full(200, 0.5))

    assert stays.tolist() == [True, False] * 100


def test_far_off_groups_do_not_cost_coordinates_their_precision() -> None:
    """With class 10^6 at an offset of 7680 px a class, float32 boxes would be rounded to 512 px."""
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 4.9], [0, 0, 10, 5.1]], np.float32)

    stays = survivors(boxes, np.full(3, 1_000_000), np.full(3, 0.5))

    assert stays.tolist() == [True, True, False]
