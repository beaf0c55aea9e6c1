"""What a classifier says of one picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Classification:
    """K classes, highest confidence first, of equal ones the lower id; K may be 0.

    confidence: (K,) float32 in 0..1. class_id: (K,) int64.
    """

    confidence: NDArray[np.float32]
    class_id: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.confidence)
