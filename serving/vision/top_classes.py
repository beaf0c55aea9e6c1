"""A batch of class scores to each picture's most confident classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from serving.domain.classification import Classification
from serving.domain.options import PredictionOptions


def classify(
    output: NDArray[np.float32], options: Sequence[PredictionOptions], *, class_count: int
) -> list[Classification]:
    """One `Classification` a picture.

    output: (B, C) float32, a score 0-1 for each class. options: one entry a picture. Classes go through
    confidence, class filter and max_detections in this order, so a filter leaves room for others. A
    threshold of 0 lets all through; a score that is not finite is left out.

    Raises ValueError where the model scores other than `class_count` classes, or other than the pictures.
    """
    if output.shape != (len(options), class_count):
        raise ValueError(f"{output.shape} scores for {len(options)} pictures and {class_count} classes")
    return [_of_one_picture(scores, entry) for scores, entry in zip(output, options, strict=True)]


def _of_one_picture(scores: NDArray[np.float32], options: PredictionOptions) -> Classification:
    threshold = options.confidence_threshold
    # Asked of the threshold as it came: in float32 the smallest would be 0, which lets all through.
    stays = np.isfinite(scores) & (scores > np.float32(threshold) if threshold > 0 else scores >= 0)
    if options.class_ids is not None:
        asked = np.zeros(len(scores), np.bool_)
        asked[sorted(options.class_ids)] = True
        stays &= asked
    class_id = stays.nonzero()[0]
    best_first = np.argsort(-scores[class_id], kind="stable")[: options.max_detections]
    class_id = class_id[best_first]
    return Classification(confidence=scores[class_id], class_id=class_id)
