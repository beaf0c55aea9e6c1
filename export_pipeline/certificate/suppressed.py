"""Outputs after suppression in the graph, against the checkpoint's raw ones, which the oracle suppresses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export_pipeline import reference
from export_pipeline.certificate.agreement import compare
from export_pipeline.certificate.partners import Asked, find_partners
from export_pipeline.certificate.tensors import PartAgreement, Run, TensorAgreement, judge_part
from export_pipeline.certificate.tolerances import Tolerances
from export_pipeline.predictions import Predictions


def compare_suppressed(
    output: str, runs: Sequence[Run], asked: Asked, size_wh: tuple[int, int], allowed: Tolerances
) -> TensorAgreement:
    """runs: expected (B, 4 + C, A), raw; answered (B, R, 6), padded with rows of confidence 0.

    Rows are compared with their partners; which rows there are, as predictions of a golden picture are.
    """
    expected: dict[str, Predictions] = {}
    answered: dict[str, Predictions] = {}
    for index, run in enumerate(runs):
        for row, (raw, rows) in enumerate(zip(run.expected[0], run.answered[0], strict=True)):
            name = f"batch {index}, row {row}"
            expected[name] = _by_the_oracle(raw, asked, size_wh)
            answered[name] = _of_rows(rows, size_wh)
    agreement = compare(expected, answered, asked, allowed)
    values = [_beside_each_other(expected[name], answered[name]) for name in expected]
    parts: list[PartAgreement] = []
    for column, part in enumerate(("boxes", "scores", "classes")):
        one, other = (
            np.concatenate([np.empty(0), *(np.ravel(pair[side][column]) for pair in values)])
            for side in (0, 1)
        )
        failure = f"rows do not agree: {agreement.failures[0]}" if agreement.failures else None
        parts.append(
            judge_part(
                output,
                part,
                (one, other),
                allowed.for_part(part),
                left_out=agreement.unmatched,
                failure=failure,
            )
        )
    return TensorAgreement(
        batch_sizes=tuple(run.batch_size for run in runs),
        parts=tuple(parts),
        passed=bool(runs) and all(part.passed for part in parts),
    )


def _by_the_oracle(raw: NDArray[Any], asked: Asked, size_wh: tuple[int, int]) -> Predictions:
    assert asked.iou is not None
    above = raw[:, raw[4:].max(axis=0) > np.float32(asked.confidence)]
    found = reference.nms(reference.read_yolo_raw(above, asked.confidence), asked.iou, asked.max_detections)
    return Predictions(
        *size_wh,
        np.array([one.confidence for one in found], np.float32),
        np.array([one.class_id for one in found], np.int64),
        np.array([one.box for one in found], np.float32).reshape(-1, 4),
    )


def _of_rows(rows: NDArray[Any], size_wh: tuple[int, int]) -> Predictions:
    given = rows[~(rows[:, 4] == 0)].astype(np.float32)
    class_id = np.where(np.isfinite(given[:, 5]), given[:, 5], -1).astype(np.int64)
    return Predictions(*size_wh, given[:, 4], class_id, given[:, :4])


def _beside_each_other(
    expected: Predictions, answered: Predictions
) -> tuple[tuple[NDArray[Any], ...], tuple[NDArray[Any], ...]]:
    partners = find_partners(expected, answered)
    sides = ((expected, partners.expected), (answered, partners.answered))
    one, other = (
        (side.xyxy[at], side.confidence[at], side.class_id[at]) for side, at in sides if side.xyxy is not None
    )
    return one, other
