from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from export_pipeline.certificate.agreement import Agreement, compare
from export_pipeline.certificate.partners import Asked
from export_pipeline.certificate.tolerances import tolerances_for
from export_pipeline.predictions import Predictions
from tests.unit.export_pipeline.certificate.test_partners import HERE, NEAR, THERE, boxes, classes

ASKED = Asked(confidence=0.25, iou=0.45, max_detections=300)
TOP = Asked(confidence=0, iou=None, max_detections=2)


def compared(
    expected: Predictions, answered: Predictions, asked: Asked = ASKED, precision: str = "fp32"
) -> Agreement:
    allowed = tolerances_for("fp32" if precision == "fp32" else "fp16")
    return compare({"a.png": expected}, {"a.png": answered}, asked, allowed)


def test_no_picture_and_nothing_found_pass_and_say_that_there_was_nothing() -> None:
    for agreement in (compare({}, {}, ASKED, tolerances_for("fp32")), compared(boxes(), boxes())):
        assert agreement.passed
        assert agreement.predictions == agreement.answered == agreement.matched == 0
        assert agreement.iou_min is agreement.confidence_max is None


@pytest.mark.parametrize(
    ("expected", "answered", "asked", "passed"),
    [
        (boxes((0, 0.9, HERE)), boxes((0, 0.9, HERE)), ASKED, True),
        (boxes((0, 0.9, HERE)), boxes((0, 0.8995, HERE)), ASKED, True),
        (boxes((0, 0.9, HERE)), boxes((0, 0.8985, HERE)), ASKED, False),
        (boxes((0, 0.9, HERE)), boxes((0, np.nan, HERE)), ASKED, False),
        (boxes((0, 0.9, HERE)), boxes((0, 0.9, (10, 10, 50, 49.9))), ASKED, True),
        (boxes((0, 0.9, HERE)), boxes((0, 0.9, NEAR)), ASKED, False),
        (boxes((0, 0.9, HERE)), boxes((1, 0.9, HERE)), ASKED, False),
        (boxes((0, 0.9, HERE)), boxes(), ASKED, False),
        (boxes(), boxes((0, 0.9, HERE)), ASKED, False),
        (boxes((0, 0.2505, HERE)), boxes(), ASKED, True),
        (boxes(), boxes((0, 0.2505, HERE)), ASKED, True),
        (boxes((0, 0.2505, HERE), (0, 0.2505, THERE)), boxes(), ASKED, False),  # one excuse, not two
        (classes((3, 0.7), (1, 0.2)), classes((3, 0.7), (1, 0.2)), TOP, True),
        (classes((3, 0.7), (1, 0.2)), classes((1, 0.7), (3, 0.2)), TOP, False),
        (classes((3, 0.4508), (1, 0.45)), classes((1, 0.4505), (3, 0.4504)), TOP, True),  # as good as equal
        (classes((3, 0.7), (1, 0.2)), classes((3, 0.7), (2, 0.2)), TOP, False),
        (classes((3, 0.7), (1, 0.1)), classes((3, 0.7), (2, 0.1005)), TOP, False),
        (classes((3, 0.7), (1, 0.2)), classes((3, 0.6), (1, 0.2)), TOP, False),
    ],
)
def test_what_is_within_the_tolerances_passes_and_nothing_else(
    expected: Predictions, answered: Predictions, asked: Asked, passed: bool
) -> None:
    agreement = compared(expected, answered, asked)

    assert agreement.passed is passed
    assert bool(agreement.failures) is not passed


def test_the_figures_are_those_of_the_partners() -> None:
    agreement = compared(
        boxes((0, 0.9, HERE), (1, 0.8, THERE), (2, 0.5, (200, 200, 220, 220))),
        boxes((0, 0.9, NEAR), (1, 0.7, THERE), (3, 0.5, (200, 200, 220, 220)), (0, 0.6, (250, 0, 290, 40))),
    )

    assert (agreement.predictions, agreement.answered, agreement.matched) == (3, 4, 2)
    assert (agreement.unmatched, agreement.at_threshold, agreement.class_disagreements) == (1, 0, 1)
    assert agreement.iou_min == 0.95
    assert agreement.iou_mean == 0.975
    assert agreement.confidence_max == pytest.approx(0.1, abs=1e-6)
    assert agreement.disagreeing == 4
    (failure,) = agreement.failures
    assert failure.startswith("a.png: 1 without a partner and 1 of another class and 2 too far off")


def grid(count: int, confidence: float = 0.9, first_class: int = 0) -> Predictions:
    """So many boxes apart from each other."""
    return boxes(
        *(
            (first_class if index == 0 else 0, confidence, (index * 30.0, 0.0, index * 30.0 + 20, 20.0))
            for index in range(count)
        )
    )


@pytest.mark.parametrize(
    ("count", "precision", "passed"),
    [(99, "fp16", False), (100, "fp16", True), (100, "fp32", False)],
)
def test_one_in_a_hundred_may_disagree_where_half_precision_rounds(
    count: int, precision: str, passed: bool
) -> None:
    assert compared(grid(count), grid(count, first_class=1), precision=precision).passed is passed


@pytest.mark.parametrize(
    ("expected_names", "answered_names", "said"),
    [
        (["a", "b"], ["a"], "b: no answer."),
        (["a"], ["a", "b"], "b: nobody asked about it."),
    ],
)
def test_a_picture_that_one_side_does_not_know_is_a_failure(
    expected_names: Sequence[str], answered_names: Sequence[str], said: str
) -> None:
    one = boxes((0, 0.9, HERE))

    agreement = compare(
        dict.fromkeys(expected_names, one), dict.fromkeys(answered_names, one), ASKED, tolerances_for("fp32")
    )

    assert not agreement.passed
    assert agreement.failures == (said,)


def test_a_picture_of_another_size_is_a_failure_even_if_nothing_is_in_it() -> None:
    agreement = compared(boxes(), replace(boxes(), width=240))

    assert agreement.failures == ("a.png: 240x320 pixels, not 320x320.",)


def test_at_most_five_pictures_are_named_the_worst_first() -> None:
    names = [f"{index}.png" for index in range(9)]
    expected = {name: grid(index) for index, name in enumerate(names)}

    agreement = compare(expected, dict.fromkeys(names, boxes()), ASKED, tolerances_for("fp32"))

    assert [failure.partition(":")[0] for failure in agreement.failures] == [
        "8.png", "7.png", "6.png", "5.png", "4.png",
    ]  # fmt: skip
