"""The oracle is judged by hand-worked cases only: nothing else stands above it."""

from __future__ import annotations

import numpy as np
import pytest

from export_pipeline.reference import (
    Box,
    Detection,
    Placement,
    ScoredClass,
    center_crop,
    iou,
    letterbox,
    nms,
    place,
    read_classification,
    read_yolo_end_to_end,
    read_yolo_raw,
    unletterbox_box,
)

UNIT: Box = (0.0, 0.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        ((1, 1), Placement(0, 0, 320, 320)),  # enlarged
        ((320, 320), Placement(0, 0, 320, 320)),  # as it is
        ((640, 480), Placement(0, 40, 320, 240)),  # bars above and below
        ((480, 640), Placement(40, 0, 240, 320)),  # bars left and right
        ((640, 482), Placement(0, 39, 320, 241)),  # 79 rows of border: 39 above, 40 below
        ((5000, 1), Placement(0, 159, 320, 1)),  # never thinner than a pixel
    ],
)
def test_a_picture_is_centred_and_touches_two_sides(picture: tuple[int, int], expected: Placement) -> None:
    assert place(*picture, 320, 320) == expected


def test_letterbox_leaves_a_fitting_picture_as_it_is_between_bars() -> None:
    picture = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)

    boxed = letterbox(picture, 4, 4, fill_value=114)

    np.testing.assert_array_equal(boxed[1:3], picture)
    assert (boxed[[0, 3]] == 114).all()


@pytest.mark.parametrize(
    ("size_wh", "begins_at"),
    [
        ((4, 4), (0, 0)),  # as it is
        ((6, 4), (1, 0)),  # the same on both sides
        ((5, 4), (0, 0)),  # half a pixel goes to the even one:
        ((7, 4), (2, 0)),  # 0.5 to 0, 1.5 to 2
        ((4, 9), (0, 2)),  # and 2.5 to 2
    ],
)
def test_a_picture_whose_shorter_side_fits_is_only_cut(
    size_wh: tuple[int, int], begins_at: tuple[int, int]
) -> None:
    (width, height), (left, top) = size_wh, begins_at
    picture = np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)

    np.testing.assert_array_equal(center_crop(picture, 4), picture[top : top + 4, left : left + 4])


def test_a_larger_picture_is_averaged() -> None:
    """Two to one: a pixel is made of four, 1, 3, 3 and 1 eighths; at the edge 3, 3 and 1 sevenths."""
    row = np.array([70, 0, 0, 80, 0, 0, 0, 0], np.uint8)
    picture = np.repeat(np.repeat(row[None, :, None], 8, axis=0), 3, axis=2)

    assert center_crop(picture, 4)[2, :, 0].tolist() == [30, 30, 10, 0]


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0.0, 40.0, 320.0, 280.0), (0.0, 0.0, 640.0, 480.0)),  # the whole picture
        ((10.0, 50.0, 20.0, 70.0), (20.0, 20.0, 40.0, 60.0)),  # inside
        ((-5.0, 0.0, 400.0, 320.0), (0.0, 0.0, 640.0, 480.0)),  # clipped
    ],
)
def test_boxes_return_to_picture_pixels(box: Box, expected: Box) -> None:
    assert unletterbox_box(box, 640, 480, 320, 320) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ((5.0, 5.0, 5.0, 5.0), 0.0),  # nothing, elsewhere
        ((0.5, 0.5, 0.5, 0.5), 0.0),  # nothing, inside
        ((1.0, 0.0, 2.0, 1.0), 0.0),  # touching
        (UNIT, 1.0),  # itself
        ((0.0, 0.0, 1.0, 2.0), 0.5),  # half of it
        ((0.5, 0.0, 1.5, 1.0), 1 / 3),  # shifted by half
        ((1.0, 1.0, 0.0, 0.0), 0.0),  # inside out
    ],
)
def test_iou(other: Box, expected: float) -> None:
    assert iou(UNIT, other) == iou(other, UNIT) == pytest.approx(expected)


def test_nms_of_nothing_is_nothing() -> None:
    assert nms([], 0.5, 10) == []


def test_nms_keeps_the_best_of_each_class_and_what_a_dropped_box_alone_overlaps() -> None:
    best = Detection((0.0, 0.0, 10.0, 10.0), 0.9, 0)
    other_class = Detection((0.0, 0.0, 10.0, 10.0), 0.8, 1)
    dropped = Detection((3.0, 0.0, 13.0, 10.0), 0.7, 0)
    behind_the_dropped = Detection((6.0, 0.0, 16.0, 10.0), 0.6, 0)
    everything = [behind_the_dropped, dropped, other_class, best]

    assert nms(everything, 0.5, 10) == [best, other_class, behind_the_dropped]
    assert nms(everything, 0.5, 10, class_agnostic=True) == [best, behind_the_dropped]
    assert nms(everything, 0.5, 1) == [best]


def test_nms_keeps_the_first_of_equals() -> None:
    first, second = Detection(UNIT, 0.5, 0), Detection((0.0, 0.0, 1.0, 1.1), 0.5, 0)

    assert nms([first, second], 0.5, 10) == [first]
    assert nms([second, first], 0.5, 10) == [second]


def test_an_overlap_of_just_the_threshold_stays() -> None:
    half = Detection((0.0, 0.0, 1.0, 2.0), 0.4, 0)

    assert nms([Detection(UNIT, 0.5, 0), half], 0.5, 10) == [Detection(UNIT, 0.5, 0), half]


def test_raw_rows_give_the_best_class_of_each_anchor_above_the_threshold() -> None:
    anchors = np.array(
        [[10, 20, 4, 6, 0.2, 0.75], [50, 50, 2, 2, 0.25, 0.1], [30, 30, 2, 2, 0.5, 0.5]], np.float32
    )

    assert read_yolo_raw(anchors.T, 0.25) == [
        Detection((8.0, 17.0, 12.0, 23.0), 0.75, 1),
        Detection((29.0, 29.0, 31.0, 31.0), 0.5, 0),
    ]
    assert read_yolo_raw(anchors.T, 0.25, [1]) == [Detection((8.0, 17.0, 12.0, 23.0), 0.75, 1)]


def test_end_to_end_rows_are_boxes_already() -> None:
    rows = np.array([[1, 2, 3, 4, 0.75, 2], [1, 2, 3, 4, 0.25, 0]], np.float32)

    assert read_yolo_end_to_end(rows, 0.25) == [Detection((1.0, 2.0, 3.0, 4.0), 0.75, 2)]
    assert read_yolo_end_to_end(rows, 0.25, [0]) == []


def test_classes_are_ranked_by_score_and_then_by_id() -> None:
    scores = np.array([0.25, 0.5, 0.0, 0.25, np.nan], np.float32)
    ranked = [ScoredClass(1, 0.5), ScoredClass(0, 0.25), ScoredClass(3, 0.25)]

    assert read_classification(scores, 0.0, 5) == [*ranked, ScoredClass(2, 0.0)]
    assert read_classification(scores, 0.1, 5) == ranked
    assert read_classification(scores, 0.25, 5) == ranked[:1]
    assert read_classification(scores, 0.0, 2) == ranked[:2]
    assert read_classification(scores, 0.0, 5, [3]) == ranked[2:]
