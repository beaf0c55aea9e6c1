"""What a caller may ask of one request, and what is left once the model's defaults have filled the gaps."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PredictionOptions:
    """Thresholds as they are executed: `confidence > confidence_threshold` stays, `IoU > iou_threshold` goes.

    max_detections: of one picture; of a classifier, how many of its most confident classes.
    class_ids: ids to keep; None keeps all. iou_threshold, class_agnostic: of use only where boxes compete.
    """

    confidence_threshold: float
    max_detections: int
    iou_threshold: float = 1.0
    class_ids: frozenset[int] | None = None
    class_agnostic: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.confidence_threshold <= 1 or not 0 <= self.iou_threshold <= 1:
            raise ValueError("thresholds lie between 0 and 1")
        if not 1 <= self.max_detections <= 1000:
            raise ValueError("max_detections lies between 1 and 1000")
