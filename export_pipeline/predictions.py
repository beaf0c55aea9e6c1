"""What a model said of pictures: the same form for the checkpoint, the exported file and the gateway."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export_pipeline.errors import ExportError


@dataclass(frozen=True, slots=True)
class Predictions:
    """Of one picture, most confident first; n may be 0.

    confidence: (n,) float32 in 0..1. class_id: (n,) int64.
    xyxy: (n, 4) float32 in pixels of the picture, EXIF orientation applied; None for a classification.
    """

    width: int
    height: int
    confidence: NDArray[np.float32]
    class_id: NDArray[np.int64]
    xyxy: NDArray[np.float32] | None


PredictionSet = Mapping[str, Predictions]
"""By the picture's file name."""


def save_predictions(path: Path, predictions: PredictionSet) -> None:
    """One `.npz` of plain arrays; the names are sorted, and the same predictions give the same arrays."""
    names = sorted(predictions)
    rows = [predictions[name] for name in names]
    boxes = {}
    if any(row.xyxy is not None for row in rows):
        boxes["xyxy"] = np.concatenate(
            [np.empty((0, 4), np.float32), *(row.xyxy for row in rows if row.xyxy is not None)]
        )
    np.savez_compressed(
        path,
        names=np.array(names, np.str_),
        sizes_wh=np.array([(row.width, row.height) for row in rows], np.int64).reshape(-1, 2),
        counts=np.array([len(row.confidence) for row in rows], np.int64),
        confidence=np.concatenate([np.empty(0, np.float32), *(row.confidence for row in rows)]),
        class_id=np.concatenate([np.empty(0, np.int64), *(row.class_id for row in rows)]),
        **boxes,
    )


def load_predictions(path: Path) -> dict[str, Predictions]:
    """Raises ExportError where the file is not one of ours. Never unpickles."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            counts = arrays["counts"]
            ends = np.cumsum(counts)
            found = {}
            for name, (width, height), begin, end in zip(
                arrays["names"].tolist(),
                arrays["sizes_wh"].tolist(),
                (ends - counts).tolist(),
                ends.tolist(),
                strict=True,
            ):
                found[name] = Predictions(
                    width,
                    height,
                    arrays["confidence"][begin:end],
                    arrays["class_id"][begin:end],
                    arrays["xyxy"][begin:end] if "xyxy" in arrays else None,
                )
            return found
    except (OSError, ValueError, KeyError) as exc:
        raise ExportError(f"{path} does not hold predictions: {exc}") from exc
