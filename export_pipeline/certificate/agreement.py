"""How the predictions of one path agree with the checkpoint's, over all golden pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from export_pipeline.certificate.partners import Asked, Partners, find_partners, is_at_threshold
from export_pipeline.certificate.tolerances import Tolerances
from export_pipeline.facts import Facts
from export_pipeline.predictions import Predictions, PredictionSet

SENTENCES_AT_MOST = 5


class Agreement(Facts):
    """predictions: the checkpoint's; answered: the path's. matched: partners of one class in one place.

    unmatched: predictions of either side without a partner, of which at_threshold are excused.
    class_disagreements: predictions of two classes in one place; of a classification, other first classes.
    iou_*, confidence_max: over partners; None without any (iou: without boxes).
    disagreeing: all that is beyond the tolerances, and no excuse for it. failures: whether that is too much.
    """

    pictures: int
    predictions: int
    answered: int
    matched: int
    unmatched: int
    at_threshold: int
    class_disagreements: int
    iou_min: float | None
    iou_mean: float | None
    confidence_max: float | None
    disagreeing: int
    passed: bool
    failures: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Picture:
    matched: int
    unmatched: int
    at_threshold: int
    class_disagreements: int
    disagreeing: int
    iou: NDArray[np.float64]
    confidence_gap: NDArray[np.float64]
    worst: str


def compare(expected: PredictionSet, answered: PredictionSet, asked: Asked, allowed: Tolerances) -> Agreement:
    """Pictures that only one side knows, or whose size they see differently, are failures of their own."""
    failures = list(_pictures_not_alike(expected, answered))
    names = sorted(expected.keys() & answered.keys())
    pictures = {name: _compare_picture(expected[name], answered[name], asked, allowed) for name in names}
    each = list(pictures.values())
    predictions = _count(expected)
    at_threshold = sum(picture.at_threshold for picture in each)
    disagreeing = sum(picture.disagreeing for picture in each)
    if disagreeing > math.floor(allowed.disagreeing_share * predictions):
        worst = sorted(pictures.items(), key=lambda item: -item[1].disagreeing)
        failures += [f"{name}: {picture.worst}" for name, picture in worst if picture.disagreeing]
    if at_threshold > max(1, math.floor(allowed.at_threshold_share * predictions)):
        failures.append(f"{at_threshold} of {predictions} predictions are without a partner, at a threshold.")
    iou = np.concatenate([np.empty(0), *(picture.iou for picture in each)])
    gaps = np.concatenate([np.empty(0), *(picture.confidence_gap for picture in each)])
    has_boxes = any(picture.xyxy is not None for picture in expected.values())
    return Agreement(
        pictures=len(names),
        predictions=predictions,
        answered=_count(answered),
        matched=sum(picture.matched for picture in each),
        unmatched=sum(picture.unmatched for picture in each),
        at_threshold=at_threshold,
        class_disagreements=sum(picture.class_disagreements for picture in each),
        iou_min=_figure(iou.min()) if len(iou) and has_boxes else None,
        iou_mean=_figure(iou.mean()) if len(iou) and has_boxes else None,
        confidence_max=_figure(gaps.max()) if len(gaps) else None,
        disagreeing=disagreeing,
        passed=not failures,
        failures=tuple(failures[:SENTENCES_AT_MOST]),
    )


def _pictures_not_alike(expected: PredictionSet, answered: PredictionSet) -> Iterator[str]:
    for name in sorted(expected.keys() ^ answered.keys()):
        yield f"{name}: " + ("no answer." if name in expected else "nobody asked about it.")
    for name in sorted(expected.keys() & answered.keys()):
        one, other = expected[name], answered[name]
        if (one.width, one.height) != (other.width, other.height):
            yield f"{name}: {other.width}x{other.height} pixels, not {one.width}x{one.height}."


def _compare_picture(
    expected: Predictions, answered: Predictions, asked: Asked, allowed: Tolerances
) -> _Picture:
    partners = find_partners(expected, answered)
    sides = (expected, answered, partners.alone_expected), (answered, expected, partners.alone_answered)
    excused = sum(
        is_at_threshold(alone, side, other_side, asked, allowed)
        for side, other_side, all_alone in sides
        for alone in all_alone
    )
    unmatched = len(partners.alone_expected) + len(partners.alone_answered)
    gaps = np.abs(
        expected.confidence[partners.expected].astype(np.float64) - answered.confidence[partners.answered]
    )
    far_off = ~((partners.iou >= allowed.iou_min) & (gaps <= allowed.confidence_max))
    other_class = len(partners.other_class) or int(_other_first_class(expected, answered, allowed))
    return _Picture(
        matched=len(partners.iou),
        unmatched=unmatched,
        at_threshold=excused,
        class_disagreements=other_class,
        disagreeing=unmatched - excused + other_class + int(far_off.sum()),
        iou=partners.iou,
        confidence_gap=gaps,
        worst=_worst(partners, gaps, unmatched - excused, other_class, int(far_off.sum())),
    )


def _other_first_class(expected: Predictions, answered: Predictions, allowed: Tolerances) -> bool:
    """Of a classification: whether another class comes first that was not as good as equal."""
    if expected.xyxy is not None or not len(expected.class_id) or not len(answered.class_id):
        return False
    first = expected.class_id == answered.class_id[0]
    return not bool((expected.confidence[first] >= expected.confidence[0] - allowed.confidence_max).any())


def _worst(partners: Partners, gaps: NDArray[np.float64], alone: int, other_class: int, far_off: int) -> str:
    said = []
    if alone:
        said.append(f"{alone} without a partner")
    if other_class:
        said.append(f"{other_class} of another class")
    if far_off:
        said.append(
            f"{far_off} too far off (IoU down to {partners.iou.min():.4f}, "
            f"confidence by up to {gaps.max():.4f})"
        )
    return f"{' and '.join(said)}, of {len(gaps)} with a partner."


def _count(predictions: PredictionSet) -> int:
    return sum(len(picture.confidence) for picture in predictions.values())


def _figure(value: float) -> float:
    """Six digits: as many as any comparison here needs, and the same on every machine's printer."""
    return float(f"{value:.6g}")
