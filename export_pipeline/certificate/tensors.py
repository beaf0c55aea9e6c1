"""Raw outputs, value by value and part by part; never by an angle between whole tensors.

Boxes are hundreds of pixels and scores at most 1, so that an output whose scores are all 0 points in the same
direction as the right one, to four digits. Each part is therefore judged for itself.

Final rows (end-to-end heads, suppression in the graph) come sorted by confidence, and a last bit decides
between two of them. They are compared as a set: row by row with the most alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export_pipeline.certificate.tolerances import Allowance, Tolerances
from export_pipeline.facts import Facts, Tensor

Floats = NDArray[np.float64]
NOT_FINITE = "some values are not finite"
NOTHING_TO_COMPARE = "there is nothing to compare"


class PartAgreement(Facts):
    """One part of one output, over all batches.

    max_rel: where the checkpoint's value is above atol. worst: the largest share of what it may differ by
    that a value does differ by; at most 1 passes. values: how many were compared. left_out: rows that were
    not, because they hang on the end of the list.
    """

    output: str
    part: str
    values: int
    left_out: int
    max_abs: float | None
    max_rel: float | None
    atol: float
    rtol: float
    worst: float | None
    passed: bool
    failure: str | None


class TensorAgreement(Facts):
    """batch_sizes: of the batches that were run, each of different pictures."""

    batch_sizes: tuple[int, ...]
    parts: tuple[PartAgreement, ...]
    passed: bool


@dataclass(frozen=True, slots=True)
class Run:
    """One batch through both sides: the outputs in the model's own order."""

    expected: Sequence[NDArray[Any]]
    answered: Sequence[NDArray[Any]]

    @property
    def batch_size(self) -> int:
        return len(self.expected[0])


def compare_tensors(outputs: Sequence[Tensor], runs: Sequence[Run], allowed: Tolerances) -> TensorAgreement:
    """Nothing run, and an output without values, does not pass."""
    parts: list[PartAgreement] = []
    for index, output in enumerate(outputs):
        pairs = [(_floats(run.expected[index]), _floats(run.answered[index])) for run in runs]
        parts += _compare_output(output, pairs, allowed)
    return TensorAgreement(
        batch_sizes=tuple(run.batch_size for run in runs),
        parts=tuple(parts),
        passed=bool(parts) and all(part.passed for part in parts),
    )


def _compare_output(
    output: Tensor, pairs: Sequence[tuple[Floats, Floats]], allowed: Tolerances
) -> Iterator[PartAgreement]:
    columns = _columns(output)
    shapes = [(expected.shape, answered.shape) for expected, answered in pairs]
    unlike = next((shape for shape in shapes if shape[0] != shape[1]), None)
    left_out = 0
    failure = None
    if unlike is not None:
        failure = f"its shape is {unlike[1]}, the checkpoint's {unlike[0]}"
        pairs = []
    elif _is_rows(output) and not all(np.isfinite(side).all() for pair in pairs for side in pair):
        failure = NOT_FINITE
    elif _is_rows(output):
        aligned = [_align(*pair, columns, allowed) for pair in pairs]
        pairs = [(each.expected, each.answered) for each in aligned]
        left_out = sum(each.left_out for each in aligned)
        surplus = sum(each.surplus for each in aligned)
        failure = f"{surplus} rows are the file's alone" if surplus else None
    for part, where in columns.items():
        allowance = allowed.for_part(part)
        expected, answered = (
            np.concatenate([np.empty(0), *(_part(pair[side], output, where).ravel() for pair in pairs)])
            for side in (0, 1)
        )
        values = expected, answered
        yield judge_part(output.name, part, values, allowance, left_out=left_out, failure=failure)


def judge_part(
    output: str,
    part: str,
    values: tuple[Floats, Floats],
    allowance: Allowance,
    *,
    left_out: int = 0,
    failure: str | None = None,
) -> PartAgreement:
    """values: expected and answered, (n,) each. failure: one that is known already."""
    expected, answered = values
    difference = _difference(expected, answered)
    share = _share(difference, expected, allowance)
    large = np.abs(expected) > allowance.atol
    if failure is None and not expected.size:
        failure = NOTHING_TO_COMPARE
    elif failure is None and not np.isfinite(difference).all():
        failure = NOT_FINITE
    elif failure is None and share.max() > 1:
        failure = f"they differ by up to {difference.max():.6g}"
    relative = difference[large] / np.abs(expected[large])
    return PartAgreement(
        output=output,
        part=part,
        values=expected.size,
        left_out=left_out,
        max_abs=_figure(difference),
        max_rel=_figure(relative),
        atol=allowance.atol,
        rtol=allowance.rtol,
        worst=_figure(share),
        passed=failure is None,
        failure=failure,
    )


@dataclass(frozen=True, slots=True)
class _Aligned:
    """expected, answered: (k, width), partners beside each other. left_out, surplus: counts of rows."""

    expected: Floats
    answered: Floats
    left_out: int
    surplus: int


def _align(
    expected: Floats, answered: Floats, columns: dict[str, tuple[int, int]], allowed: Tolerances
) -> _Aligned:
    """For each of the checkpoint's rows the file's most alike; what the file has besides is surplus.

    Rows hardly more confident than the checkpoint's last one are left out: which of them still come onto the
    list is chance. Padding (confidence 0) is among them. Where confidences differ by a margin at most, a row
    of the checkpoint's is surely on the file's list from two margins above the end, and one of the file's
    surely among those rows from three.
    """
    kept: list[tuple[Floats, Floats]] = []
    left_out = surplus = 0
    scores_at = columns["scores"][0]
    allowance = allowed.for_part("scores")
    for expected_rows, answered_rows in zip(expected, answered, strict=True):
        end = expected_rows[:, scores_at].min(initial=1.0)
        margin = allowance.atol + allowance.rtol * abs(end)
        counts = expected_rows[:, scores_at] > end + 2 * margin
        chosen = _most_alike(expected_rows[counts], answered_rows, columns, allowed)
        others = np.delete(answered_rows, chosen, axis=0)
        surplus += int((others[:, scores_at] > end + 3 * margin).sum())
        left_out += int((~counts).sum())
        kept.append((expected_rows[counts], answered_rows[chosen]))
    width = expected.shape[-1]
    one, other = (np.concatenate([np.empty((0, width)), *(pair[side] for pair in kept)]) for side in (0, 1))
    return _Aligned(one, other, left_out, surplus)


def _most_alike(
    rows: Floats, candidates: Floats, columns: dict[str, tuple[int, int]], allowed: Tolerances
) -> list[int]:
    """For each row the position of the candidate whose worst column is the least off; none twice."""
    free = np.arange(len(candidates))
    chosen = []
    for row in rows:
        off = np.zeros(len(free))
        for part, (begin, end) in columns.items():
            wanted = np.broadcast_to(row[begin:end], (len(free), end - begin))
            difference = _difference(wanted, candidates[free, begin:end])
            off = np.maximum(off, _share(difference, wanted, allowed.for_part(part)).max(axis=1))
        best = int(off.argmin())
        chosen.append(int(free[best]))
        free = np.delete(free, best)
    return chosen


def _difference(expected: Floats, answered: Floats) -> Floats:
    with np.errstate(invalid="ignore"):
        difference = np.abs(expected - answered)
    return np.where(np.isfinite(expected) & np.isfinite(answered), difference, np.inf)


def _share(difference: Floats, expected: Floats, allowance: Allowance) -> Floats:
    may = allowance.atol + allowance.rtol * np.abs(expected)
    with np.errstate(invalid="ignore", divide="ignore"):
        share: Floats = np.where(difference == 0, 0.0, difference / may)
    return np.where(np.isnan(share), np.inf, share)


def _columns(output: Tensor) -> dict[str, tuple[int, int]]:
    return output.parts or {"all": (0, -1)}


def _part(values: Floats, output: Tensor, where: tuple[int, int]) -> Floats:
    if not output.parts:
        return values
    axis = -1 if _is_rows(output) else output.parts_axis
    return np.moveaxis(values, axis, 0)[slice(*where)]


def _is_rows(output: Tensor) -> bool:
    """(N, R, columns), each row a prediction."""
    return bool(output.parts) and "R" in output.layout


def _floats(values: NDArray[Any]) -> Floats:
    return values.astype(np.float64)


def _figure(values: Floats) -> float | None:
    """The largest, to six digits; None where there is none or it is not finite."""
    largest = float(values.max()) if values.size else np.inf
    return float(f"{largest:.6g}") if np.isfinite(largest) else None
