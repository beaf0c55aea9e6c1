"""A batch of the model's output to each picture's predictions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from serving.domain.contract import ModelContract
from serving.domain.detections import Detections
from serving.domain.geometry import LetterboxGeometry, Size
from serving.domain.inference import Predictions
from serving.domain.options import PredictionOptions
from serving.vision.heads import Candidates, read_candidates
from serving.vision.letterbox import undo_letterbox
from serving.vision.nms import survivors
from serving.vision.top_classes import classify

CANDIDATES_AT_A_TIME = 512
"""Of each picture. More than a threshold of any use leaves; bounds the pairs that may overlap each other."""


def postprocess(
    contract: ModelContract,
    output: NDArray[np.float32],
    options: Sequence[PredictionOptions],
    picture_sizes: Sequence[Size],
) -> Sequence[Predictions]:
    """What the contract's head says of each picture. output: (B, …) float32; the others: one a picture."""
    if contract.head == "classification":
        return classify(output, options, class_count=len(contract.classes))
    geometries = [LetterboxGeometry.fit(size, contract.input_size) for size in picture_sizes]
    return detect(contract, output, options, geometries)


def detect(
    contract: ModelContract,
    output: NDArray[np.float32],
    options: Sequence[PredictionOptions],
    geometries: Sequence[LetterboxGeometry],
) -> list[Detections]:
    """One `Detections` a picture, in picture pixels, clipped, highest confidence first.

    output: (B, …) float32 as the contract's head answers it. options, geometries: one a picture. Candidates
    go through confidence, class filter, NMS and max_detections in this order, as in Ultralytics' predict.

    Raises ValueError where the three do not have the same length.
    """
    if not len(output) == len(options) == len(geometries):
        raise ValueError(f"{len(output)} rows, {len(options)} options and {len(geometries)} geometries")
    found = read_candidates(contract.head, output, options, class_count=len(contract.classes))
    found = found.take(np.lexsort((-found.confidence, found.picture)))
    if contract.suppresses_duplicates:
        found = _without_duplicates(found, options, class_count=len(contract.classes))
    begins = found.first_of_each_picture(len(output))
    return [
        _of_one_picture(found, slice(begin, min(end, begin + entry.max_detections)), geometry)
        for begin, end, entry, geometry in zip(begins, begins[1:], options, geometries, strict=False)
    ]


def _without_duplicates(
    found: Candidates, options: Sequence[PredictionOptions], *, class_count: int
) -> Candidates:
    """NMS of candidates that come best first, some of each picture at a time until it has what it wants.

    What comes later never changes what was kept before, so those kept so far and the next in line are all
    that has to be looked at together. With thresholds of 0 every row of the model is a candidate and
    overlaps most others: that costs time in proportion to the rows, and no more memory than this.
    """
    if len(found) <= CANDIDATES_AT_A_TIME:
        return found.take(_survivors(found, options, class_count=class_count))
    begins = np.array(found.first_of_each_picture(len(options)))
    rank = np.arange(len(found)) - begins[found.picture]
    wanted = np.array([entry.max_detections for entry in options])
    stays = np.zeros(len(found), np.bool_)
    unfinished = np.diff(begins) > 0
    looked_at = 0
    while unfinished.any():
        next_in_line = (rank >= looked_at) & (rank < looked_at + CANDIDATES_AT_A_TIME)
        looked_at += CANDIDATES_AT_A_TIME
        in_play = ((stays | next_in_line) & unfinished[found.picture]).nonzero()[0]
        stays[in_play] = _survivors(found.take(in_play), options, class_count=class_count)
        kept_counts = np.bincount(found.picture[stays], minlength=len(options))
        unfinished = (kept_counts < wanted) & (looked_at < np.diff(begins))
    return found.take(stays)


def _survivors(
    found: Candidates, options: Sequence[PredictionOptions], *, class_count: int
) -> NDArray[np.bool_]:
    iou_thresholds = np.array([entry.iou_threshold for entry in options], np.float64)
    by_class = np.array([not entry.class_agnostic for entry in options], np.bool_)
    group = found.picture * class_count + found.class_id * by_class[found.picture]
    return survivors(found.xyxy, group, iou_thresholds[found.picture])


def _of_one_picture(found: Candidates, rows: slice, geometry: LetterboxGeometry) -> Detections:
    return Detections(
        xyxy=undo_letterbox(found.xyxy[rows], geometry),
        confidence=found.confidence[rows],
        class_id=found.class_id[rows],
    )
