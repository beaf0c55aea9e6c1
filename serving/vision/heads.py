"""What a model's rows mean: from an output tensor to the candidates above each picture's threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serving.domain.contract import Head
from serving.domain.options import DetectionOptions


@dataclass(frozen=True, slots=True)
class Candidates:
    """N boxes of a whole batch, by picture and within it in the model's own order; N may be 0.

    xyxy: (N, 4) float32 in input pixels, finite, not clipped.
    confidence: (N,) float32. class_id: (N,) int64. picture: (N,) int64, the position in the batch.
    """

    xyxy: NDArray[np.float32]
    confidence: NDArray[np.float32]
    class_id: NDArray[np.int64]
    picture: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.confidence)

    def first_of_each_picture(self, picture_count: int) -> list[int]:
        """Where each picture's candidates begin, and how many there are: `picture_count` + 1 numbers."""
        begins: list[int] = np.searchsorted(self.picture, np.arange(picture_count + 1)).tolist()
        return begins

    def take(self, chosen: NDArray[np.intp] | NDArray[np.bool_]) -> Candidates:
        return Candidates(
            self.xyxy[chosen], self.confidence[chosen], self.class_id[chosen], self.picture[chosen]
        )


def read_candidates(
    head: Head, output: NDArray[np.float32], options: Sequence[DetectionOptions]
) -> Candidates:
    """`output`: (B, …) float32 as the head answers it; one entry of `options` a picture.

    A candidate's confidence is above the picture's threshold and its class among those asked for. Rows that
    hold a NaN or an infinity are no boxes and are left out.
    """
    thresholds = np.array([entry.confidence_threshold for entry in options], np.float32)
    found = _READERS[head](output, thresholds)
    found = _only_wanted_classes(found, options)
    finite = np.isfinite(found.xyxy)
    return found if finite.all() else found.take(finite.all(axis=1))


def _read_yolo_raw(output: NDArray[np.float32], thresholds: NDArray[np.float32]) -> Candidates:
    """(B, 4 + C, A): for each of A anchors cx, cy, w, h, then C scores, of which the best names the class."""
    best_score = output[:, 4:].max(axis=1)
    picture, anchor = np.nonzero(best_score > thresholds[:, None])
    rows = output[picture, :, anchor]
    half_size = rows[:, 2:4] / 2
    return Candidates(
        xyxy=np.concatenate([rows[:, :2] - half_size, rows[:, :2] + half_size], axis=1),
        confidence=best_score[picture, anchor],
        class_id=rows[:, 4:].argmax(axis=1),
        picture=picture,
    )


def _read_yolo_end_to_end(output: NDArray[np.float32], thresholds: NDArray[np.float32]) -> Candidates:
    """(B, R, 6): rows of x_min, y_min, x_max, y_max, confidence, class, already without duplicates."""
    picture, row = np.nonzero(output[:, :, 4] > thresholds[:, None])
    rows = output[picture, row]
    return Candidates(
        xyxy=rows[:, :4], confidence=rows[:, 4], class_id=rows[:, 5].astype(np.int64), picture=picture
    )


_READERS = {"yolo_raw": _read_yolo_raw, "yolo_end_to_end": _read_yolo_end_to_end}


def _only_wanted_classes(found: Candidates, options: Sequence[DetectionOptions]) -> Candidates:
    if all(entry.class_ids is None for entry in options):
        return found
    wanted = np.ones(len(found), np.bool_)
    for index, entry in enumerate(options):
        if entry.class_ids is not None:
            here = found.picture == index
            wanted[here] = np.isin(found.class_id[here], sorted(entry.class_ids))
    return found.take(wanted)
