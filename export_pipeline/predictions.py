"""What a model said of pictures: the same form for the checkpoint, the exported file and the gateway."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

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


MOST_BYTES: Final = 1024**3


def save_predictions(path: Path, predictions: PredictionSet) -> None:
    """One `.npz` of plain arrays; the names are sorted, and the same predictions give the same arrays.

    Either all have boxes or none has.
    """
    names = sorted(predictions)
    rows = [predictions[name] for name in names]
    boxes = [row.xyxy for row in rows if row.xyxy is not None]
    if len(boxes) not in {0, len(rows)}:
        raise ValueError("some of the predictions have boxes, and some have none")
    np.savez_compressed(
        path,
        names=np.array(names, np.str_),
        sizes_wh=np.array([(row.width, row.height) for row in rows], np.int64).reshape(-1, 2),
        counts=np.array([len(row.confidence) for row in rows], np.int64),
        confidence=np.concatenate([np.empty(0, np.float32), *(row.confidence for row in rows)]),
        class_id=np.concatenate([np.empty(0, np.int64), *(row.class_id for row in rows)]),
        **({"xyxy": np.concatenate(boxes)} if boxes else {}),
    )


def load_predictions(path: Path) -> dict[str, Predictions]:
    """Raises ExportError where the file is not one of ours. Never unpickles, never swells past a bound."""
    try:
        _require_bounded(path)
        with np.load(path, allow_pickle=False) as arrays:
            return _split({name: arrays[name] for name in arrays.files})
    except (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as exc:
        raise ExportError(f"{path} does not hold predictions: {exc}") from exc


def _require_bounded(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES} bytes unpacked")


def _split(arrays: dict[str, NDArray[Any]]) -> dict[str, Predictions]:
    """Picture by picture. Raises ValueError or KeyError for arrays that do not fit together."""
    names, sizes_wh, counts = arrays["names"], arrays["sizes_wh"], arrays["counts"]
    rows = int(counts.sum())
    expected = {
        "names": ("U", (len(counts),)),
        "sizes_wh": ("i", (len(counts), 2)),
        "counts": ("i", (len(counts),)),
        "confidence": ("f", (rows,)),
        "class_id": ("i", (rows,)),
        **({"xyxy": ("f", (rows, 4))} if "xyxy" in arrays else {}),
    }
    for name, (kind, shape) in expected.items():
        if arrays[name].dtype.kind != kind or arrays[name].shape != shape:
            raise ValueError(f"{name} is {arrays[name].dtype} {arrays[name].shape}, not {kind} {shape}")
    if (counts < 0).any():
        raise ValueError("a picture with fewer than no predictions")
    ends = np.cumsum(counts)
    found = {}
    for name, (width, height), begin, end in zip(
        names.tolist(), sizes_wh.tolist(), (ends - counts).tolist(), ends.tolist(), strict=True
    ):
        found[name] = Predictions(
            width,
            height,
            arrays["confidence"][begin:end],
            arrays["class_id"][begin:end],
            arrays["xyxy"][begin:end] if "xyxy" in arrays else None,
        )
    return found
