from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from export_pipeline.certificate.partners import Asked
from export_pipeline.certificate.suppressed import compare_suppressed
from export_pipeline.certificate.tensors import Run, TensorAgreement
from export_pipeline.certificate.tolerances import tolerances_for

ASKED = Asked(confidence=0.25, iou=0.45, max_detections=3, in_graph=True)

Floats = NDArray[np.float32]
Row = tuple[float, float, float, float, float, int]
HERE = (10.0, 10.0, 50.0, 50.0)
THERE = (100.0, 100.0, 150.0, 150.0)


def raw(*anchors: tuple[float, float, float, float, float, float]) -> Floats:
    """(1, 6, A) from centre, size and the scores of two classes."""
    return np.array(anchors, np.float32).reshape(-1, 6).T[None]


def rows(*values: Row) -> Floats:
    padded = [*values, *[(0.0,) * 6] * (3 - len(values))]
    return np.array([padded], np.float32)


TWO_AND_A_RIVAL = raw(
    (30, 30, 40, 40, 0.9, 0.1),
    (31, 30, 40, 40, 0.8, 0.1),
    (125, 125, 50, 50, 0.1, 0.7),
    (200, 9, 5, 5, 0.2, 0.1),
)


def compared(expected: Floats, answered: Floats) -> TensorAgreement:
    return compare_suppressed(
        "rows", [Run([expected], [answered])], ASKED, (320, 320), tolerances_for("fp32")
    )


def test_nothing_run_and_nothing_found_do_not_pass() -> None:
    nothing = compare_suppressed("rows", [], ASKED, (320, 320), tolerances_for("fp32"))
    assert not nothing.passed
    assert not compared(raw(), rows()).passed
    assert {part.failure for part in compared(raw(), rows()).parts} == {"there is nothing to compare"}


@pytest.mark.parametrize(
    ("answered", "failed"),
    [
        (rows((*HERE, 0.9, 0), (*THERE, 0.7, 1)), set()),
        (rows((*THERE, 0.7, 1), (*HERE, 0.9, 0)), set()),
        (rows((*HERE, 0.9004, 0), (*THERE, 0.7, 1)), set()),
        (rows((*HERE, 0.9015, 0), (*THERE, 0.7, 1)), {"boxes", "scores", "classes"}),
        (rows((*HERE, 0.9, 0)), {"boxes", "scores", "classes"}),
        (rows((*HERE, 0.9, 0), (11, 10, 51, 50, 0.8, 0), (*THERE, 0.7, 1)), {"boxes", "scores", "classes"}),
        (rows((*HERE, 0.9, 0), (*THERE, 0.7, 0)), {"boxes", "scores", "classes"}),
        (rows((*HERE, np.nan, 0), (*THERE, 0.7, 1)), {"boxes", "scores", "classes"}),
        (rows((10, 10, 50, 50.05, 0.9, 0), (*THERE, 0.7, 1)), {"boxes"}),
    ],
)
def test_rows_are_those_that_the_oracle_leaves(answered: Floats, failed: set[str]) -> None:
    agreement = compared(TWO_AND_A_RIVAL, answered)

    assert {part.part for part in agreement.parts if not part.passed} == failed
    assert agreement.passed is (not failed)


def test_pictures_of_one_batch_are_not_mixed() -> None:
    """Suppression in a graph that forgets the batch gives the first picture's boxes to all."""
    one, other = raw((30, 30, 40, 40, 0.9, 0.1)), raw((125, 125, 50, 50, 0.1, 0.7))
    expected = np.concatenate([one, other])
    right = np.concatenate([rows((*HERE, 0.9, 0)), rows((*THERE, 0.7, 1))])
    mixed = np.concatenate([rows((*HERE, 0.9, 0), (*THERE, 0.7, 1)), rows()])

    assert compared(expected, right).passed
    assert not compared(expected, mixed).passed
