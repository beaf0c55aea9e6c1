from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from export_pipeline.certificate.tensors import Run, TensorAgreement, compare_tensors
from export_pipeline.certificate.tolerances import tolerances_for
from export_pipeline.facts import Tensor

STRICT = tolerances_for("fp32")
RAW = Tensor(
    name="raw",
    shape=(-1, 6, 3),
    dtype="float32",
    layout="NCA",
    description="-",
    parts={"boxes": (0, 4), "scores": (4, 6)},
    parts_axis=1,
)
ROWS = Tensor(
    name="rows",
    shape=(-1, 4, 6),
    dtype="float32",
    layout="NRF",
    description="-",
    parts={"boxes": (0, 4), "scores": (4, 5), "classes": (5, 6)},
    parts_axis=2,
)
WHOLE = Tensor(name="whole", shape=(-1, 3), dtype="float32", layout="NC", description="-")

Floats = NDArray[np.float32]


def raw(box: float = 200, score: float = 0.5) -> Floats:
    return np.array([[[box] * 3] * 4 + [[score] * 3] * 2], np.float32)


def rows(*values: tuple[float, float, int]) -> Floats:
    """Of place, confidence and class, filled up with padding."""
    padded = [*values, *[(0.0, 0.0, 0)] * (4 - len(values))]
    return np.array(
        [[[place] * 4 + [confidence, class_id] for place, confidence, class_id in padded]], np.float32
    )


def compared(output: Tensor, expected: Floats, answered: Floats) -> TensorAgreement:
    return compare_tensors([output], [Run([expected], [answered])], STRICT)


def failures(agreement: TensorAgreement) -> dict[str, str | None]:
    return {part.part: part.failure for part in agreement.parts if not part.passed}


def test_nothing_compared_does_not_pass() -> None:
    assert not compare_tensors([], [], STRICT).passed
    assert not compare_tensors([RAW], [], STRICT).passed
    assert failures(compared(RAW, raw()[:0], raw()[:0])) == dict.fromkeys(
        ("boxes", "scores"), "there is nothing to compare"
    )


@pytest.mark.parametrize(
    ("answered", "failed"),
    [
        (raw(), {}),
        (raw(box=200.03), {}),
        (raw(box=200.05), {"boxes": "they differ by up to 0.0500031"}),
        (raw(score=0.5004), {}),
        (raw(score=0.502), {"scores": "they differ by up to 0.00199997"}),
        (raw(score=np.nan), {"scores": "some values are not finite"}),
        (raw(box=np.inf), {"boxes": "some values are not finite"}),
        (
            raw()[:, :, :2],
            dict.fromkeys(("boxes", "scores"), "its shape is (1, 6, 2), the checkpoint's (1, 6, 3)"),
        ),
    ],
)
def test_each_part_is_judged_by_its_own_tolerance(answered: Floats, failed: dict[str, str]) -> None:
    agreement = compared(RAW, raw(), answered)

    assert failures(agreement) == failed
    assert agreement.passed is (not failed)


def test_scores_that_are_all_zero_fail_though_the_whole_tensor_points_in_the_same_direction() -> None:
    expected, answered = raw(), raw(score=0)
    cosine = float((expected * answered).sum() / np.linalg.norm(expected) / np.linalg.norm(answered))

    assert cosine > 0.99999
    assert set(failures(compared(RAW, expected, answered))) == {"scores"}


def test_figures_of_all_batches_are_put_together() -> None:
    agreement = compare_tensors(
        [RAW],
        [Run([raw()], [raw()]), Run([np.repeat(raw(), 3, axis=0)], [np.repeat(raw(box=202), 3, axis=0)])],
        STRICT,
    )

    boxes, scores = agreement.parts
    assert agreement.batch_sizes == (1, 3)
    assert (boxes.values, boxes.max_abs, boxes.max_rel) == (48, 2.0, 0.01)
    assert (scores.values, scores.max_abs, scores.worst, scores.passed) == (24, 0.0, 0.0, True)


def test_an_output_without_parts_is_one() -> None:
    values = np.array([[1, 2, 3]], np.float32)

    assert failures(compared(WHOLE, values, values)) == {}
    assert failures(compared(WHOLE, values, values[:, ::-1])) == {"all": "they differ by up to 2"}


@pytest.mark.parametrize(
    ("expected", "answered", "failed"),
    [
        ([(10, 0.9, 1), (90, 0.8, 2)], [(10, 0.9, 1), (90, 0.8, 2)], {}),
        ([(10, 0.9, 1), (90, 0.9, 2)], [(90, 0.90001, 2), (10, 0.9, 1)], {}),  # a last bit changed places
        ([(10, 0.9, 1), (90, 0.9, 2)], [(10, 0.9, 1)], {"boxes", "scores", "classes"}),
        ([(10, 0.9, 1), (10, 0.9, 1)], [(10, 0.9, 1), (90, 0.9, 1)], {"boxes"}),  # nobody's partner twice
        ([(10, 0.9, 1)], [(10, 0.9, 2)], {"classes"}),
        ([(10, 0.9, 1)], [(10.5, 0.9, 1)], {"boxes"}),
        ([(10, 0.9, 1)], [(10, 0.8, 1)], {"scores"}),
        # full to the end: which one still came onto the list is chance
        (
            [(10, 0.9, 1), (20, 0.8, 1), (30, 0.7, 1), (40, 0.1, 1)],
            [(10, 0.9, 1), (20, 0.8, 1), (30, 0.7, 1), (70, 0.1, 1)],
            {},
        ),
    ],
)
def test_final_rows_are_compared_as_a_set(
    expected: list[tuple[float, float, int]], answered: list[tuple[float, float, int]], failed: set[str]
) -> None:
    assert set(failures(compared(ROWS, rows(*expected), rows(*answered)))) == set(failed)


@pytest.mark.parametrize("confidence", [0.0, 0.99, 1.0, np.nan, np.inf])
def test_a_file_whose_rows_are_all_the_same_does_not_pass(confidence: float) -> None:
    """Whatever its last row is, it is not for the file to say where the list ends."""
    expected = rows((10, 0.9, 1), (20, 0.8, 1), (30, 0.7, 1), (40, 0.1, 1))

    assert not compared(ROWS, expected, rows(*[(10, confidence, 1)] * 4)).passed


def test_rows_that_are_all_padding_are_nothing_to_compare() -> None:
    nothing = rows()

    assert set(failures(compared(ROWS, nothing, nothing))) == {"boxes", "scores", "classes"}


def test_a_row_that_only_the_file_has_is_seen() -> None:
    agreement = compared(ROWS, rows((10, 0.9, 1)), rows((10, 0.9, 1), (90, 0.8, 2)))

    assert failures(agreement) == dict.fromkeys(("boxes", "scores", "classes"), "1 rows are the file's alone")
