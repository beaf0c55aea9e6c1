from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from export_pipeline import reference
from serving.domain.classification import Classification
from serving.domain.options import PredictionOptions
from serving.vision.top_classes import classify

OPTIONS = PredictionOptions(confidence_threshold=0.0, max_detections=5)


def scores(*row: float) -> NDArray[np.float32]:
    return np.array([row], np.float32)


def classify_one(output: NDArray[np.float32], options: PredictionOptions = OPTIONS) -> Classification:
    (found,) = classify(output, [options], class_count=output.shape[1])
    return found


def as_tuples(found: Classification) -> list[tuple[int, float]]:
    rows = zip(found.class_id.tolist(), found.confidence.tolist(), strict=True)
    return [(class_id, round(confidence, 4)) for class_id, confidence in rows]


@pytest.mark.parametrize(
    ("output", "options"),
    [
        (scores(np.nan, np.nan), OPTIONS),
        (scores(np.inf, -np.inf), OPTIONS),
        (scores(0.5, 0.25), replace(OPTIONS, confidence_threshold=0.5)),  # just the threshold
        (scores(0.1, 0.9), replace(OPTIONS, confidence_threshold=1.0)),
        (scores(0.0, 0.0), replace(OPTIONS, confidence_threshold=1e-50)),  # in float32 it is 0
        (scores(0.1, 0.9), replace(OPTIONS, class_ids=frozenset())),
    ],
)
def test_there_may_be_nothing_to_say(output: NDArray[np.float32], options: PredictionOptions) -> None:
    found = classify_one(output, options)

    assert len(found) == 0
    assert (str(found.confidence.dtype), str(found.class_id.dtype)) == ("float32", "int64")


def test_a_batch_of_none_gives_none() -> None:
    assert classify(np.empty((0, 4), np.float32), [], class_count=4) == []


@pytest.mark.parametrize(
    ("output", "options", "expected"),
    [
        (scores(1.0), OPTIONS, [(0, 1.0)]),
        (scores(0.1, 0.6, 0.3), OPTIONS, [(1, 0.6), (2, 0.3), (0, 0.1)]),
        (scores(0.1, 0.6, 0.3), replace(OPTIONS, max_detections=2), [(1, 0.6), (2, 0.3)]),
        (scores(0.1, 0.6, 0.3), replace(OPTIONS, confidence_threshold=0.2), [(1, 0.6), (2, 0.3)]),
        (scores(0.0, 1.0, 0.0), OPTIONS, [(1, 1.0), (0, 0.0), (2, 0.0)]),  # a threshold of 0 lets all through
        (scores(0.0, 1.0), replace(OPTIONS, confidence_threshold=1e-9), [(1, 1.0)]),
        (scores(0.25, 0.5, 0.25, 0.5), OPTIONS, [(1, 0.5), (3, 0.5), (0, 0.25), (2, 0.25)]),  # lower id first
        (scores(0.2, 0.2, 0.2, 0.2), replace(OPTIONS, max_detections=3), [(0, 0.2), (1, 0.2), (2, 0.2)]),
        (scores(0.1, np.nan, 0.3, np.inf), OPTIONS, [(2, 0.3), (0, 0.1)]),
        (scores(*[0.1] * 10), OPTIONS, [(number, 0.1) for number in range(5)]),
    ],
)
def test_the_most_confident_come_first(
    output: NDArray[np.float32], options: PredictionOptions, expected: list[tuple[int, float]]
) -> None:
    assert as_tuples(classify_one(output, options)) == expected


def test_the_class_filter_comes_before_the_count() -> None:
    """Classes that nobody asked for would otherwise take the places of those that were."""
    options = replace(OPTIONS, max_detections=2, class_ids=frozenset({0, 2, 3}))

    assert as_tuples(classify_one(scores(0.1, 0.6, 0.05, 0.25), options)) == [(3, 0.25), (0, 0.1)]


def test_each_picture_of_a_batch_has_its_own_options() -> None:
    output = np.repeat(scores(0.5, 0.3, 0.2), 3, axis=0)
    options = [
        OPTIONS,
        replace(OPTIONS, max_detections=1),
        replace(OPTIONS, confidence_threshold=0.25, class_ids=frozenset({1, 2})),
    ]

    found = classify(output, options, class_count=3)

    assert [each.class_id.tolist() for each in found] == [[0, 1, 2], [0], [1]]


@given(
    row=st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, np.nan, np.inf]), min_size=1, max_size=8),
    options=st.builds(
        PredictionOptions,
        confidence_threshold=st.sampled_from([0.0, 0.1, 0.25, 1.0]),
        max_detections=st.integers(1, 9),
        class_ids=st.sampled_from([None, frozenset({0})]),
    ),
)
@settings(deadline=None)
def test_any_scores_are_answered_as_the_oracle_answers_them(
    row: list[float], options: PredictionOptions
) -> None:
    wanted = None if options.class_ids is None else sorted(options.class_ids)
    expected = reference.read_classification(
        scores(*row)[0], options.confidence_threshold, options.max_detections, wanted
    )

    found = classify_one(scores(*row), options)

    assert found.class_id.tolist() == [each.class_id for each in expected]
    assert found.confidence.tolist() == [each.confidence for each in expected]


def test_the_models_output_is_left_alone() -> None:
    output = scores(0.1, 0.6, np.nan)
    output.flags.writeable = False

    classify_one(output)


@pytest.mark.parametrize("shape", [(1, 2), (1, 4), (2, 3), (0, 3)])
def test_scores_of_other_classes_or_pictures_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="scores for 1 pictures and 3 classes"):
        classify(np.zeros(shape, np.float32), [OPTIONS], class_count=3)
