"""What a detector's rows mean: from an output tensor to the candidates above each picture's threshold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serving.domain.metadata import Head
from serving.domain.options import PredictionOptions


@dataclass(frozen=True, slots=True)
class Candidates:
    """N boxes of a whole batch, by picture and within it in the model's own order; N may be 0.

    xyxy: (N, 4) float32 in input pixels, finite, not clipped.
    confidence: (N,) float32, finite. class_id: (N,) int64 in 0..C-1.
    picture: (N,) int64, the position in the batch.
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


_Reader = Callable[[NDArray[np.float32], NDArray[np.float32], int], Candidates]
"""Output, a threshold for each picture, and how many classes there are."""


def read_candidates(
    head: Head, output: NDArray[np.float32], options: Sequence[PredictionOptions], *, class_count: int
) -> Candidates:
    """`output`: (B, …) float32 as the head answers it; one entry of `options` a picture.

    A candidate's confidence is above the picture's threshold and its class among those asked for. Rows are
    left out whose box or confidence is not finite, any of whose scores is NaN, or whose class is not one of
    the `class_count` that the model's contract names.

    Raises ValueError where a raw head does not score as many classes, KeyError for a head without boxes.
    """
    thresholds = np.array([entry.confidence_threshold for entry in options], np.float32)
    found = _READERS[head](output, thresholds, class_count)
    found = _only_wanted_classes(found, options)
    finite = np.isfinite(found.xyxy).all(axis=1) & np.isfinite(found.confidence)
    return found if finite.all() else found.take(finite)


def _read_yolo_raw(
    output: NDArray[np.float32], thresholds: NDArray[np.float32], class_count: int
) -> Candidates:
    """(B, 4 + C, A): for each of A anchors cx, cy, w, h, then C scores, of which the best names the class."""
    if output.shape[1] != 4 + class_count:
        raise ValueError(f"An output of shape {output.shape} does not score {class_count} classes.")
    best_score = output[:, 4:].max(axis=1)
    picture, anchor = np.nonzero(best_score > thresholds[:, None])
    rows = output[picture, :, anchor]
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite then is left out
        half_size = rows[:, 2:4] / 2
        xyxy = np.concatenate([rows[:, :2] - half_size, rows[:, :2] + half_size], axis=1)
    return Candidates(
        xyxy=xyxy,
        confidence=best_score[picture, anchor],
        class_id=rows[:, 4:].argmax(axis=1),
        picture=picture,
    )


def _read_yolo_end_to_end(
    output: NDArray[np.float32], thresholds: NDArray[np.float32], class_count: int
) -> Candidates:
    """(B, R, 6): rows of x_min, y_min, x_max, y_max, confidence, class, already without duplicates."""
    confidence, class_id = output[:, :, 4], output[:, :, 5]
    # Compared as it comes: to cast NaN, an infinity or 1e30 to an integer is undefined.
    named = (class_id >= 0) & (class_id < class_count)
    picture, row = np.nonzero((confidence > thresholds[:, None]) & named)
    rows = output[picture, row]
    return Candidates(
        xyxy=rows[:, :4], confidence=rows[:, 4], class_id=rows[:, 5].astype(np.int64), picture=picture
    )


_READERS: dict[Head, _Reader] = {"yolo_raw": _read_yolo_raw, "yolo_end_to_end": _read_yolo_end_to_end}


def _only_wanted_classes(found: Candidates, options: Sequence[PredictionOptions]) -> Candidates:
    if all(entry.class_ids is None for entry in options):
        return found
    wanted = np.ones(len(found), np.bool_)
    for index, entry in enumerate(options):
        if entry.class_ids is not None:
            here = found.picture == index
            wanted[here] = np.isin(found.class_id[here], sorted(entry.class_ids))
    return found.take(wanted)
