"""How much boxes share, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

SAME_CORNER_PIXELS = 0.01
"""The gateway's answers are rounded to a tenth of this."""


def pairwise_iou(one_xyxy: NDArray[Any], other_xyxy: NDArray[Any]) -> NDArray[np.float64]:
    """(n, 4) and (m, 4) to (n, m) of shared over joint area. A box that is not finite shares nothing."""
    one, other = one_xyxy.astype(np.float64)[:, None], other_xyxy.astype(np.float64)[None]
    with np.errstate(invalid="ignore", divide="ignore"):
        sides = np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2])
        shared = np.maximum(sides, 0).prod(axis=2)
        iou = shared / (_area(one) + _area(other) - shared)
    result: NDArray[np.float64] = np.where(np.isfinite(iou), iou, 0.0)
    return result


def pairwise_sameness(one_xyxy: NDArray[Any], other_xyxy: NDArray[Any]) -> NDArray[np.float64]:
    """`pairwise_iou`, but 1 where all corners agree: clipped to a picture's edge, a box may have no area."""
    one, other = one_xyxy.astype(np.float64)[:, None], other_xyxy.astype(np.float64)[None]
    with np.errstate(invalid="ignore"):
        same = (np.abs(one - other) <= SAME_CORNER_PIXELS).all(axis=2)
    return np.where(same, 1.0, pairwise_iou(one_xyxy, other_xyxy))


def _area(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    area: NDArray[np.float64] = np.maximum(boxes[..., 2:] - boxes[..., :2], 0).prod(axis=-1)
    return area
