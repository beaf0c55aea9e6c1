from __future__ import annotations

import numpy as np
import pytest

from export_pipeline.certificate.average_precision import Found, hits, mean_average_precision

Box = tuple[float, float, float, float]
HERE: Box = (0, 0, 10, 10)
THERE: Box = (100, 100, 110, 110)
TWO_THIRDS: Box = (0, 2, 10, 12)  # IoU with HERE: 80 / 120
ELSEWHERE: Box = (50, 50, 60, 60)


def picture(found: list[tuple[int, float, Box]], labelled: list[tuple[int, Box]]) -> Found:
    return Found(
        np.array([box for _, _, box in found], np.float32).reshape(-1, 4),
        np.array([confidence for _, confidence, _ in found], np.float32),
        np.array([class_id for class_id, _, _ in found], np.int64),
        np.array([box for _, box in labelled], np.float32).reshape(-1, 4),
        np.array([class_id for class_id, _ in labelled], np.int64),
    )


def test_without_a_label_there_is_nothing_to_measure() -> None:
    for pictures in ([], [picture([(0, 0.9, HERE)], [])]):
        with pytest.raises(ValueError, match="no picture has a label"):
            mean_average_precision(pictures)


LABELLED_TWICE = [(0, HERE), (0, THERE)]


@pytest.mark.parametrize(
    ("found", "labelled", "map50", "map50_95"),
    [
        ([], [(0, HERE)], 0, 0),
        ([(1, 0.9, HERE)], [(0, HERE)], 0, 0),  # the class is not labelled, and does not count
        # At the very last recall precision is 0 already, which costs half of one of the 100 steps.
        ([(0, 0.9, HERE)], [(0, HERE)], 0.995, 0.995),
        ([(0, 0.9, TWO_THIRDS)], [(0, HERE)], 0.995, 0.398),  # at 0.50, 0.55, 0.60 and 0.65
        ([(0, 0.9, HERE)], LABELLED_TWICE, 0.495, 0.495),  # precision 1 up to recall 0.5
        ([(0, 0.9, HERE), (0, 0.8, HERE)], LABELLED_TWICE, 0.495, 0.495),  # twice the same finds one
        ([(0, 0.9, ELSEWHERE), (0, 0.8, HERE)], [(0, HERE)], 0.4975, 0.4975),  # wrong first: precision 1/2
        ([(0, 0.9, HERE)], [(0, HERE), (1, THERE)], 0.4975, 0.4975),  # the mean of two classes
    ],
)
def test_hand_computed(
    found: list[tuple[int, float, Box]], labelled: list[tuple[int, Box]], map50: float, map50_95: float
) -> None:
    measured = mean_average_precision([picture(found, labelled)])

    assert measured.map50 == pytest.approx(map50, abs=1e-12)
    assert measured.map50_95 == pytest.approx(map50_95, abs=1e-12)


def test_confidence_counts_over_all_pictures() -> None:
    wrong = picture([(0, 0.9, ELSEWHERE)], [])
    right = picture([(0, 0.8, HERE)], [(0, HERE)])
    surer = picture([(0, 0.95, HERE)], [(0, HERE)])

    assert mean_average_precision([wrong, surer]).map50 > mean_average_precision([wrong, right]).map50


@pytest.mark.parametrize(
    ("found", "labelled", "levels"),
    [
        ([], [], []),
        ([], [(0, HERE)], []),
        ([(0, 0.9, HERE)], [], [0]),
        ([(0, 0.9, HERE)], [(0, HERE)], [10]),
        ([(0, 0.9, TWO_THIRDS)], [(0, HERE)], [4]),
        ([(1, 0.9, HERE)], [(0, HERE)], [0]),
        ([(0, 0.9, HERE), (0, 0.8, HERE)], [(0, HERE)], [10, 0]),
        # the surer one takes the label where its IoU is enough, the other one where it is not
        ([(0, 0.9, TWO_THIRDS), (0, 0.8, HERE)], [(0, HERE)], [4, 6]),
        # a label that is taken leaves the next best one
        ([(0, 0.9, HERE), (0, 0.8, HERE)], [(0, HERE), (0, TWO_THIRDS)], [10, 4]),
    ],
)
def test_a_label_is_found_once_at_each_iou(
    found: list[tuple[int, float, Box]], labelled: list[tuple[int, Box]], levels: list[int]
) -> None:
    assert hits(picture(found, labelled)).sum(axis=1).tolist() == levels
