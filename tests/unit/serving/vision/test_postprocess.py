from __future__ import annotations

import json
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from export_pipeline import reference
from export_pipeline.reference import Detection
from serving.domain.classification import Classification
from serving.domain.contract import ModelContract
from serving.domain.detections import Detections
from serving.domain.geometry import LetterboxGeometry, Size
from serving.domain.metadata import Head
from serving.domain.options import PredictionOptions
from serving.vision.postprocess import CANDIDATES_AT_A_TIME, detect, postprocess
from tests.support.contracts import CLASSIFIER
from tests.support.contracts import END_TO_END as EMBEDDED

SHAPES = json.loads((Path(__file__).parents[4] / "model_repo/shapes/metadata.json").read_bytes())
CLASS_COUNT = len(SHAPES["classes"])
INPUT = Size(320, 320)
AS_IS = LetterboxGeometry.fit(INPUT, INPUT)
OPTIONS = PredictionOptions(confidence_threshold=0.25, iou_threshold=0.45, max_detections=300)


NO_CLASSES = (-1, CLASS_COUNT, 1e30, np.nan, np.inf, -np.inf)


def contract_with(head: Head, *, nms: bool) -> ModelContract:
    metadata: dict[str, Any] = json.loads(json.dumps(SHAPES))
    raw = head == "yolo_raw"
    metadata["postprocessing"]["nms"]["enabled"] = nms
    metadata["postprocessing"]["output_format"] |= {"head": head, "bbox_format": "cxcywh" if raw else "xyxy"}
    metadata["output_spec"][0]["shape"] = [-1, 4 + CLASS_COUNT, 2100] if raw else [-1, 300, 6]
    return ModelContract.parse(json.dumps(metadata).encode())


RAW = contract_with("yolo_raw", nms=True)
END_TO_END = contract_with("yolo_end_to_end", nms=False)


def raw_rows(*anchors: Sequence[float]) -> NDArray[np.float32]:
    """(1, 4 + C, A) from A times cx, cy, w, h and the first of the scores."""
    rows = np.zeros((1, 4 + CLASS_COUNT, len(anchors)), np.float32)
    for index, anchor in enumerate(anchors):
        rows[0, : len(anchor), index] = anchor
    return rows


def end_to_end_rows(*rows: Sequence[float]) -> NDArray[np.float32]:
    return np.array(rows, np.float32).reshape(1, -1, 6)


def detect_one(
    contract: ModelContract, output: NDArray[np.float32], options: PredictionOptions = OPTIONS
) -> Detections:
    (found,) = detect(contract, output, [options], [AS_IS])
    return found


def as_tuples(found: Detections) -> list[tuple[int, float, list[float]]]:
    return [
        (int(class_id), round(float(confidence), 4), box.tolist())
        for class_id, confidence, box in zip(found.class_id, found.confidence, found.xyxy, strict=True)
    ]


def dtypes(found: Detections) -> list[str]:
    return [str(array.dtype) for array in (found.xyxy, found.confidence, found.class_id)]


@pytest.mark.parametrize(
    ("contract", "output"),
    [
        (RAW, raw_rows()),  # no anchors
        (RAW, raw_rows((10, 10, 4, 4, 0.25))),  # just the threshold
        (RAW, raw_rows((10, 10, 4, 4, np.nan))),  # no score
        (RAW, raw_rows((10, np.nan, 4, 4, 0.9))),  # no box
        (RAW, raw_rows((10, np.inf, 4, 4, 0.9))),
        (RAW, raw_rows((np.inf, 10, np.inf, 4, 0.9))),
        (RAW, raw_rows((3e38, 10, 3e38, 4, 0.9))),  # beyond what float32 holds
        (RAW, raw_rows((10, 10, 4, 4, np.inf))),
        (RAW, raw_rows((10, 10, 4, 4, 0.9, np.nan))),  # a score that is not the best
        (END_TO_END, end_to_end_rows()),
        (END_TO_END, end_to_end_rows((1, 2, 3, 4, 0.25, 0))),
        (END_TO_END, end_to_end_rows((1, 2, np.nan, 4, 0.9, 0))),
        (END_TO_END, end_to_end_rows((-np.inf, 2, 3, 4, 0.9, 0))),
        (END_TO_END, end_to_end_rows((1, 2, 3, 4, np.nan, 0))),
        (END_TO_END, end_to_end_rows((1, 2, 3, 4, np.inf, 0))),
        *((END_TO_END, end_to_end_rows((1, 2, 3, 4, 0.9, class_id))) for class_id in NO_CLASSES),
    ],
)
def test_what_is_no_candidate_gives_no_detections(
    contract: ModelContract, output: NDArray[np.float32]
) -> None:
    found = detect_one(contract, output)

    assert found.xyxy.shape == (0, 4)
    assert found.confidence.shape == found.class_id.shape == (0,)
    assert dtypes(found) == ["float32", "float32", "int64"]


def test_a_batch_of_none_gives_none() -> None:
    assert detect(RAW, np.empty((0, 4 + CLASS_COUNT, 2100), np.float32), [], []) == []


def test_raw_rows_become_boxes_of_their_best_class_best_first() -> None:
    found = detect_one(RAW, raw_rows((100, 50, 20, 10, 0.1, 0.5), (30, 40, 10, 20, 0.3, 0.3, 0.75)))

    assert as_tuples(found) == [(2, 0.75, [25, 30, 35, 50]), (1, 0.5, [90, 45, 110, 55])]
    assert dtypes(found) == ["float32", "float32", "int64"]


def test_end_to_end_rows_are_taken_without_nms() -> None:
    twice = (10, 20, 30, 40, 0.5, 3)

    found = detect_one(END_TO_END, end_to_end_rows(twice, (1, 2, 3, 4, 0.75, 1), twice))

    assert as_tuples(found) == [
        (1, 0.75, [1, 2, 3, 4]),
        (3, 0.5, [10, 20, 30, 40]),
        (3, 0.5, [10, 20, 30, 40]),
    ]


@pytest.mark.parametrize("class_id", NO_CLASSES)
@pytest.mark.parametrize("nms", [False, True])
def test_a_row_of_no_class_touches_neither_its_own_nor_the_next_picture(class_id: float, nms: bool) -> None:
    """Its number would otherwise make it a rival of the first class of the next picture."""
    box = (10, 20, 30, 40)
    stray = [(*box, 0.9, class_id), (*box, 0.5, CLASS_COUNT - 1)]
    output = np.concatenate([end_to_end_rows(*stray), end_to_end_rows((*box, 0.5, 0), (*box, 0.1, 0))])

    found = detect(contract_with("yolo_end_to_end", nms=nms), output, [OPTIONS] * 2, [AS_IS] * 2)

    assert [as_tuples(each) for each in found] == [[(CLASS_COUNT - 1, 0.5, [*box])], [(0, 0.5, [*box])]]


@pytest.mark.parametrize("class_count", [CLASS_COUNT - 1, CLASS_COUNT + 1])
def test_a_raw_head_of_other_classes_than_the_contract_names_is_refused(class_count: int) -> None:
    with pytest.raises(ValueError, match=f"does not score {CLASS_COUNT} classes"):
        detect_one(RAW, np.zeros((1, 4 + class_count, 3), np.float32))


def test_boxes_are_clipped_to_the_picture_and_in_its_pixels() -> None:
    geometry = LetterboxGeometry.fit(Size(640, 480), INPUT)

    (found,) = detect(RAW, raw_rows((0, 40, 40, 40, 0.5), (160, 160, 10, 10, 0.4)), [OPTIONS], [geometry])

    assert as_tuples(found) == [(0, 0.5, [0, 0, 40, 40]), (0, 0.4, [310, 230, 330, 250])]


def test_each_picture_of_a_batch_has_its_own_thresholds() -> None:
    one = raw_rows((50, 50, 20, 20, 0.9), (54, 50, 20, 20, 0.6), (200, 200, 20, 20, 0.3, 0.35))
    options = [
        OPTIONS,
        replace(OPTIONS, confidence_threshold=0.35),
        replace(OPTIONS, iou_threshold=0.9),
        replace(OPTIONS, max_detections=1),
        replace(OPTIONS, class_ids=frozenset({1})),
        replace(OPTIONS, class_ids=frozenset()),
        replace(OPTIONS, confidence_threshold=0.95),
    ]

    found = detect(RAW, np.repeat(one, len(options), axis=0), options, [AS_IS] * len(options))

    confidences = [[round(float(each), 2) for each in one.confidence] for one in found]
    assert confidences == [[0.9, 0.35], [0.9], [0.9, 0.6, 0.35], [0.9], [0.35], [], []]


def test_the_class_filter_comes_before_nms() -> None:
    """A box of another class would otherwise have taken this one with it."""
    output = raw_rows((50, 50, 20, 20, 0.9), (50, 50, 20, 20, 0, 0.6))
    options = replace(OPTIONS, class_agnostic=True, class_ids=frozenset({1}))

    assert as_tuples(detect_one(RAW, output, options)) == [(1, 0.6, [40, 40, 60, 60])]


def test_class_agnostic_nms_lets_classes_compete() -> None:
    output = raw_rows((50, 50, 20, 20, 0.9), (50, 50, 20, 20, 0, 0.6))

    assert len(detect_one(RAW, output)) == 2
    assert len(detect_one(RAW, output, replace(OPTIONS, class_agnostic=True))) == 1


def test_the_first_anchor_wins_among_equals() -> None:
    output = raw_rows((50, 50, 20, 20, 0.5), (51, 50, 20, 20, 0.5))

    assert as_tuples(detect_one(RAW, output)) == [(0, 0.5, [40, 40, 60, 60])]


@pytest.mark.parametrize("duplicates", [0, 1, CANDIDATES_AT_A_TIME - 1, CANDIDATES_AT_A_TIME, 2_000])
def test_looking_at_some_candidates_at_a_time_finds_what_looking_at_all_finds(duplicates: int) -> None:
    """The second object lies behind the duplicates of the first, and its own duplicates behind it."""
    first = [(50.0, 50.0, 20.0, 20.0, 0.9)] * (1 + duplicates)
    second = [(200.0, 200.0, 20.0, 20.0, 0.5)] * (1 + duplicates)
    options = [OPTIONS, replace(OPTIONS, max_detections=1)]

    found = detect(RAW, np.repeat(raw_rows(*first, *second), 2, axis=0), options, [AS_IS] * 2)

    both = [(0, 0.9, [40, 40, 60, 60]), (0, 0.5, [190, 190, 210, 210])]
    assert [as_tuples(each) for each in found] == [both, both[:1]]


@pytest.mark.parametrize("iou_threshold", [0.0, 0.45, 0.9])
def test_thousands_of_candidates_are_answered_as_the_oracle_answers_them(iou_threshold: float) -> None:
    output = random_output("yolo_raw", 2, seed=3, count=1_300)
    options = replace(OPTIONS, confidence_threshold=0.0, iou_threshold=iou_threshold)

    found = detect(RAW, output, [options, replace(options, max_detections=20)], [AS_IS] * 2)

    for rows, most, detections in zip(output, (300, 20), found, strict=True):
        expected = oracle(rows, replace(options, max_detections=most), nms=True)
        assert detections.confidence.tolist() == [each.confidence for each in expected]


def test_thresholds_of_zero_over_a_large_model_cost_bounded_memory() -> None:
    output = random_output("yolo_raw", 4, seed=4, count=8_400)
    options = [replace(OPTIONS, confidence_threshold=0.0, iou_threshold=0.0, class_agnostic=True)] * 4

    tracemalloc.start()
    try:
        detect(RAW, output, options, [AS_IS] * 4)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak_bytes < 64 * 1024 * 1024


@pytest.mark.parametrize("head", ["yolo_raw", "yolo_end_to_end"])
@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_any_batch_is_answered_as_the_oracle_answers_each_picture(head: Head, data: st.DataObject) -> None:
    options = data.draw(
        st.lists(
            st.builds(
                PredictionOptions,
                confidence_threshold=st.sampled_from([0.0, 0.25, 0.7]),
                iou_threshold=st.sampled_from([0.0, 0.45, 1.0]),
                max_detections=st.sampled_from([1, 3, 300]),
                class_ids=st.sampled_from([None, frozenset({0}), frozenset({1, 3})]),
                class_agnostic=st.booleans(),
            ),
            min_size=1,
            max_size=3,
        )
    )
    output = random_output(head, len(options), seed=data.draw(st.integers(0, 10_000)))
    picture = Size(640, 480)
    geometries = [LetterboxGeometry.fit(picture, INPUT)] * len(options)
    nms = head == "yolo_raw"

    found = detect(contract_with(head, nms=nms), output, options, geometries)

    for rows, entry, detections in zip(output, options, found, strict=True):
        expected = oracle(rows, entry, nms=nms)
        assert detections.class_id.tolist() == [each.class_id for each in expected]
        assert detections.confidence.tolist() == [each.confidence for each in expected]
        boxes = [reference.unletterbox_box(each.box, 640, 480, 320, 320) for each in expected]
        np.testing.assert_allclose(detections.xyxy, np.array(boxes).reshape(-1, 4), atol=1e-3)


def random_output(head: Head, batch_size: int, *, seed: int, count: int = 40) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    centre, size = rng.uniform(0, 80, (batch_size, count, 2)), rng.uniform(10, 60, (batch_size, count, 2))
    rows = np.empty((batch_size, count, 4 + CLASS_COUNT if head == "yolo_raw" else 6), np.float32)
    rows[..., :2] = centre
    if head == "yolo_raw":
        rows[..., 2:4] = size
        rows[..., 4:] = rng.uniform(0, 1, (batch_size, count, CLASS_COUNT))
        return rows.transpose(0, 2, 1).copy()
    rows[..., 2:4] = centre + size
    rows[..., 4] = -np.sort(-rng.uniform(0, 1, (batch_size, count)))
    rows[..., 5] = rng.integers(0, CLASS_COUNT, (batch_size, count))
    return rows


def oracle(rows: NDArray[np.float32], options: PredictionOptions, *, nms: bool) -> list[Detection]:
    wanted = None if options.class_ids is None else sorted(options.class_ids)
    if not nms:
        candidates = reference.read_yolo_end_to_end(rows, options.confidence_threshold, wanted)
        return candidates[: options.max_detections]
    candidates = reference.read_yolo_raw(rows, options.confidence_threshold, wanted)
    return reference.nms(
        candidates, options.iou_threshold, options.max_detections, class_agnostic=options.class_agnostic
    )


def test_rows_that_competed_inside_the_model_do_not_do_so_again_and_padding_is_nothing() -> None:
    """The graph has its own way with ties and rounding; boxes that it kept are kept."""
    contract = ModelContract.parse(EMBEDDED)
    box, padding = (10, 20, 30, 40), (0, 0, 0, 0, 0, 0)
    output = end_to_end_rows((*box, 0.75, 3), (*box, 0.5, 3), padding, padding)

    for confidence_threshold in (0.0, 0.25):
        found = detect_one(contract, output, replace(OPTIONS, confidence_threshold=confidence_threshold))
        assert as_tuples(found) == [(3, 0.75, [*box]), (3, 0.5, [*box])]
    assert as_tuples(detect_one(contract, output, replace(OPTIONS, max_detections=1))) == [(3, 0.75, [*box])]


def test_each_head_is_read_its_own_way() -> None:
    sizes, options = [Size(640, 480)], [OPTIONS]

    (boxes,) = postprocess(RAW, raw_rows((160, 160, 10, 10, 0.4)), options, sizes)
    (rows,) = postprocess(END_TO_END, end_to_end_rows((155, 155, 165, 165, 0.4, 0)), options, sizes)
    (classes,) = postprocess(
        ModelContract.parse(CLASSIFIER), np.array([[0.1, 0.2, 0.4, 0.3]], np.float32), options, sizes
    )

    assert isinstance(boxes, Detections)
    assert isinstance(rows, Detections)
    assert as_tuples(boxes) == as_tuples(rows) == [(0, 0.4, [310, 230, 330, 250])]
    assert isinstance(classes, Classification)
    assert classes.class_id.tolist() == [2, 3]


@pytest.mark.parametrize(
    ("options", "geometries"), [([], [AS_IS]), ([OPTIONS], []), ([OPTIONS] * 2, [AS_IS] * 2)]
)
def test_a_batch_that_does_not_fit_together_is_refused(
    options: list[PredictionOptions], geometries: list[LetterboxGeometry]
) -> None:
    with pytest.raises(ValueError, match="1 rows"):
        detect(RAW, raw_rows((10, 10, 4, 4, 0.5)), options, geometries)
