"""One picture's predictions on two sides, one to one: who is whose partner, and who may be without one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export_pipeline.certificate.boxes import pairwise_iou, pairwise_sameness
from export_pipeline.certificate.tolerances import Tolerances
from export_pipeline.facts import Facts
from export_pipeline.predictions import Predictions

SAME_OBJECT_IOU = 0.5


class Asked(Facts):
    """What all sides were asked with. iou: None where nothing is suppressed after the graph.

    in_graph: the graph holds them itself, and nobody is asked with any.
    """

    confidence: float
    iou: float | None
    max_detections: int
    in_graph: bool = False

    def options(self) -> dict[str, Any]:
        """As the gateway and the Python wrapper take them."""
        if self.in_graph:
            return {}
        suppression = {} if self.iou is None else {"iou_threshold": self.iou}
        return {"confidence_threshold": self.confidence, **suppression, "max_detections": self.max_detections}


@dataclass(frozen=True, slots=True)
class Partners:
    """expected, answered: (p,) positions of the partners on both sides; iou: (p,), 1 without boxes.

    other_class: pairs in one place that are of two classes. alone_*: positions of those with neither.
    """

    expected: NDArray[np.intp]
    answered: NDArray[np.intp]
    iou: NDArray[np.float64]
    other_class: tuple[tuple[int, int], ...]
    alone_expected: tuple[int, ...]
    alone_answered: tuple[int, ...]


def find_partners(expected: Predictions, answered: Predictions) -> Partners:
    """The most alike in place and confidence first, from IoU 0.5; without boxes, those of one class."""
    places = _places(expected, answered)
    same_class = expected.class_id[:, None] == answered.class_id[None]
    gap = np.abs(expected.confidence[:, None].astype(np.float64) - answered.confidence[None])
    likeness = places - np.where(np.isfinite(gap), gap, 2.0)
    pairs = _most_alike(likeness, same_class & (places >= SAME_OBJECT_IOU))
    taken = {one for one, _ in pairs}, {other for _, other in pairs}
    left_over = (places >= SAME_OBJECT_IOU) & ~same_class if expected.xyxy is not None else same_class & False
    for side, positions in enumerate(taken):
        left_over[(slice(None),) * side + (sorted(positions),)] = False
    other_class = _most_alike(likeness, left_over)
    one, other = (np.array([pair[side] for pair in pairs], np.intp) for side in (0, 1))
    return Partners(
        one,
        other,
        places[one, other],
        tuple(other_class),
        _others(len(expected.class_id), taken[0] | {one for one, _ in other_class}),
        _others(len(answered.class_id), taken[1] | {other for _, other in other_class}),
    )


def is_at_threshold(
    alone: int, side: Predictions, other_side: Predictions, asked: Asked, allowed: Tolerances
) -> bool:
    """Whether `side`'s prediction hangs on a threshold, so that the other side may do without it.

    By its confidence: hardly above the other side's bar, which is the threshold or, where that side has as
    many as it may, its last one. By an IoU: as far from the suppression threshold as boxes may move, with
    one of its class on the other side that comes before it.
    """
    confidence = float(side.confidence[alone])
    is_full = 0 < asked.max_detections <= len(other_side.confidence)
    bar = max(asked.confidence, float(other_side.confidence.min())) if is_full else asked.confidence
    if confidence <= bar + allowed.confidence_max:
        return True
    if asked.iou is None or side.xyxy is None or other_side.xyxy is None:
        return False
    overlap = pairwise_iou(side.xyxy[alone : alone + 1], other_side.xyxy)[0]
    rival = (other_side.class_id == side.class_id[alone]) & (
        other_side.confidence >= confidence - allowed.confidence_max
    )
    return bool((rival & (np.abs(overlap - asked.iou) <= 1 - allowed.iou_min)).any())


def _places(expected: Predictions, answered: Predictions) -> NDArray[np.float64]:
    """(n, m): how much of one place two predictions are."""
    if expected.xyxy is None or answered.xyxy is None:
        return np.ones((len(expected.class_id), len(answered.class_id)))
    return pairwise_sameness(expected.xyxy, answered.xyxy)


def _most_alike(likeness: NDArray[np.float64], may: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Pairs of row and column, greedily from the most alike; every row and column at most once."""
    rows, columns = np.nonzero(may)
    pairs: list[tuple[int, int]] = []
    taken: tuple[set[int], set[int]] = set(), set()
    for index in np.argsort(-likeness[rows, columns], kind="stable"):
        row, column = int(rows[index]), int(columns[index])
        if row not in taken[0] and column not in taken[1]:
            pairs.append((row, column))
            taken[0].add(row)
            taken[1].add(column)
    return pairs


def _others(count: int, taken: set[int]) -> tuple[int, ...]:
    return tuple(index for index in range(count) if index not in taken)
