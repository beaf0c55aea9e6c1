"""Greedy non-maximum suppression over many groups at once, without ever building an N × N matrix.

Two boxes can only have an IoU above a threshold where they share that much of their widths. Sorted by left
edge, a box's rivals are therefore the short run of boxes that begin early enough inside it. Their IoUs are
worked out together, and what is left to settle are the few pairs above the threshold.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

_PAIRS_AT_A_TIME = 1 << 14
"""Bounds memory, and keeps a chunk of pairs in the cache."""


def survivors(
    boxes_xyxy: NDArray[np.float32], group: NDArray[np.int64], iou_threshold: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """(N,) bool: which boxes stay. They come best first; N may be 0.

    boxes_xyxy: (N, 4), finite. group: (N,) from 0; boxes compete only within theirs (a picture's class, say).
    iou_threshold: (N,) in 0..1, the same for all of a group.

    The first box of a group stays, every later one that has an IoU above the threshold with it goes, and so
    on with the next that is left. Boxes of equal confidence keep the order that they are given in. IoU is
    intersection / union in float64, where nothing that float32 holds overflows; a box whose sides are not
    positive has no area and overlaps nothing.
    """
    if not len(boxes_xyxy):
        return np.empty(0, np.bool_)
    xyxy = boxes_xyxy.T.astype(np.float64, order="C")
    width, height = np.maximum(xyxy[2:] - xyxy[:2], 0)
    order, run_ends = _sweep(xyxy[0], xyxy[2], group, iou_threshold)
    # take, unlike indexing, answers contiguous rows, which pick pairs twice as fast.
    columns = np.stack([*xyxy, width * height, iou_threshold]).take(order, axis=1)
    pairs = [_overlapping(columns, *pair) for pair in _pairs(run_ends)]
    one, other = (order[np.concatenate(side)] for side in zip(*pairs, strict=True))
    return _settle(np.minimum(one, other), np.maximum(one, other), count=len(boxes_xyxy))


def _sweep(
    x_min: Floats, x_max: Floats, group: NDArray[np.int64], iou_threshold: Floats
) -> tuple[Indices, Indices]:
    """The order by group and left edge, and for each box in it where those end that begin early enough.

    The groups are laid side by side, which costs the coordinates some bits. The run is made longer by more
    than that, so that it holds a box too many rather than one too few; the IoU is of exact coordinates.
    """
    leftmost = x_min.min()
    span = np.maximum(x_min, x_max).max() - leftmost
    group_begin = group * (2 * span + 1)
    begin = group_begin + (x_min - leftmost)
    last_useful_begin = group_begin + ((x_max - leftmost) - iou_threshold * (x_max - x_min))
    order = begin.argsort()
    slack = (begin.max() + span) * 2.0**-40
    return order, begin[order].searchsorted(last_useful_begin[order] + slack)


def _pairs(run_ends: Indices) -> Iterator[tuple[Indices, Indices]]:
    """Every box with each of those between it and the end of its run, in chunks; at least one chunk."""
    position = np.arange(len(run_ends))
    rivals = np.maximum(run_ends - position - 1, 0)
    pairs_up_to = rivals.cumsum()
    begin = 0
    while begin < len(rivals):
        done = pairs_up_to[begin] - rivals[begin]
        end = max(begin + 1, int(pairs_up_to.searchsorted(done + _PAIRS_AT_A_TIME, side="right")))
        here = slice(begin, end)
        first_pair = pairs_up_to[here] - rivals[here] - done
        one = np.repeat(position[here], rivals[here])
        yield one, np.arange(len(one)) + np.repeat(position[here] + 1 - first_pair, rivals[here])
        begin = end


def _overlapping(columns: Floats, one: Indices, other: Indices) -> tuple[Indices, Indices]:
    """Those of the pairs with an IoU above the threshold. Columns: x_min y_min x_max y_max area threshold."""
    x_min, y_min, x_max, y_max, area, threshold = columns
    height = np.minimum(y_max[one], y_max[other]) - np.maximum(y_min[one], y_min[other])
    meet = (height > 0).nonzero()[0]
    one, other, height = one[meet], other[meet], height[meet]
    width = np.minimum(x_max[one], x_max[other]) - np.maximum(x_min[one], x_min[other])
    shared = np.maximum(width, 0) * height
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN, which is above no threshold
        above = shared / (area[one] + area[other] - shared) > threshold[one]
    return one[above], other[above]


def _settle(winner: Indices, loser: Indices, *, count: int) -> NDArray[np.bool_]:
    """Those who are beaten by nobody that stays. A pass is right for one more of any chain of rivals."""
    stays = np.ones(count, np.bool_)
    while True:
        unbeaten = np.ones(count, np.bool_)
        unbeaten[loser[stays[winner]]] = False
        if np.array_equal(unbeaten, stays):
            return stays
        stays = unbeaten
