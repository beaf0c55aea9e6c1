"""Ultralytics' own predict and val, around a network that was read safely, at the exported input's size."""

from __future__ import annotations

import contextlib
import copy
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import ultralytics.data.utils
import yaml
from numpy.typing import NDArray
from ultralytics import YOLO

from export_pipeline.datasets import Dataset, LabelledPicture, open_dataset
from export_pipeline.errors import BadInput, ExportError, Unsupported
from export_pipeline.frameworks import Thresholds
from export_pipeline.predictions import Predictions
from export_pipeline.request import TaskType

VALIDATION_BATCH = 8
OWN_WORDS: dict[TaskType, str] = {
    "detection": "detect",
    "classification": "classify",
    "segmentation": "segment",
}
"""For tasks; the others are called the same."""


class OwnModel:
    def __init__(self, network: torch.nn.Module, task_type: TaskType) -> None:
        self._task_type = task_type
        self._yolo = _yolo_around(network, task_type)

    def predict(
        self, picture: Path, thresholds: Thresholds, size_wh: tuple[int, int], *, end_to_end: bool
    ) -> Predictions:
        """Raises BadInput for a picture it cannot read, Unsupported for a task with more than boxes."""
        if self._task_type not in {"detection", "classification"}:
            raise Unsupported(f"Predictions of {self._task_type} cannot be compared yet, only its tensors.")
        width, height = size_wh
        results = self._yolo.predict(
            picture,
            imgsz=(height, width),
            conf=thresholds.confidence,
            iou=thresholds.iou,
            max_det=thresholds.max_detections,
            nms=False if end_to_end else None,
            rect=False,
            augment=False,
            agnostic_nms=False,
            device="cpu",
            verbose=False,
        )
        if len(results) != 1:
            raise BadInput(f"Ultralytics cannot read the picture {picture.name}.")
        if tuple(self._yolo.predictor.imgsz) != (height, width):
            raise ExportError(f"Ultralytics predicts at {self._yolo.predictor.imgsz} instead of {size_wh}.")
        return (
            _read_classes(results[0], thresholds) if results[0].probs is not None else _read_boxes(results[0])
        )

    def validate(
        self,
        dataset: Path,
        class_names: Sequence[str],
        side: int,
        max_pictures: int | None,
        *,
        end_to_end: bool,
    ) -> dict[str, float]:
        opened = open_dataset(dataset, self._task_type, class_names, max_pictures)
        with tempfile.TemporaryDirectory(prefix="validation-") as scratch, _without_fonts():
            # A copy: Ultralytics mends pictures where they lie, and leaves a cache beside the labels.
            data = _copy_dataset(opened, class_names, Path(scratch))
            metrics = self._yolo.val(
                data=str(data),
                imgsz=side,
                batch=VALIDATION_BATCH,
                nms=False if end_to_end else None,
                rect=False,
                augment=False,
                plots=False,
                workers=0,
                device="cpu",
                project=scratch,
                name="run",
                exist_ok=True,
                verbose=False,
            )
        if self._task_type == "classification":
            return {"top1": float(metrics.top1), "top5": float(metrics.top5)}
        return {"mAP50": float(metrics.box.map50), "mAP50-95": float(metrics.box.map)}


def _yolo_around(network: Any, task_type: TaskType) -> YOLO:
    """Ultralytics' model object. Where it would unpickle a file, it is given the network."""

    class Around(YOLO):  # type: ignore[misc]  # Ultralytics ships no types
        def _load(self, weights: str, task: str | None = None) -> None:
            self.model, self.task, self.model_name = copy.deepcopy(network), task, weights
            self.overrides = {"task": task, "model": weights}

    return Around("checkpoint.pt", task=OWN_WORDS.get(task_type, task_type))


def _read_boxes(result: Any) -> Predictions:
    height, width = result.orig_shape
    rows: NDArray[np.float32] = result.boxes.data.numpy().astype(np.float32)
    rows = rows[np.argsort(-rows[:, 4], kind="stable")]
    return Predictions(width, height, rows[:, 4], rows[:, 5].astype(np.int64), rows[:, :4])


def _read_classes(result: Any, thresholds: Thresholds) -> Predictions:
    height, width = result.orig_shape
    scores: NDArray[np.float32] = result.probs.data.numpy().astype(np.float32)
    best = np.argsort(-scores, kind="stable")[: thresholds.max_detections]
    if thresholds.confidence > 0:
        best = best[scores[best] > np.float32(thresholds.confidence)]
    return Predictions(width, height, scores[best], best.astype(np.int64), None)


def _copy_dataset(dataset: Dataset, class_names: Sequence[str], folder: Path) -> Path:
    """What Ultralytics' `data` takes: the same pictures and labels, and nothing to download."""
    if all(picture.xyxy is None for picture in dataset.pictures):
        return _copy_class_folders(dataset, class_names, folder)
    images, labels = folder / "images", folder / "labels"
    images.mkdir()
    labels.mkdir()
    for index, picture in enumerate(dataset.pictures):
        shutil.copyfile(picture.file, images / f"{index:06d}{picture.file.suffix}")
        (labels / f"{index:06d}.txt").write_text(_label_lines(picture))
    file = folder / "data.yaml"
    description = {"path": str(folder), "train": "images", "val": "images"}
    file.write_text(yaml.safe_dump({**description, "names": dict(enumerate(class_names))}))
    return file


def _label_lines(picture: LabelledPicture) -> str:
    assert picture.xyxy is not None
    low, high = picture.xyxy[:, :2], picture.xyxy[:, 2:]
    rows = np.concatenate([(low + high) / 2, high - low], axis=1).tolist()
    return "".join(
        f"{class_id} {' '.join(map(repr, row))}\n"
        for class_id, row in zip(picture.class_id.tolist(), rows, strict=True)
    )


def _copy_class_folders(dataset: Dataset, class_names: Sequence[str], folder: Path) -> Path:
    """Folders named by number, since Ultralytics takes a folder's place in the alphabet for its class."""
    for class_id in range(len(class_names)):
        (folder / "val" / f"{class_id:06d}").mkdir(parents=True)
    (folder / "train").symlink_to("val")  # it is asked for, and not read
    for index, picture in enumerate(dataset.pictures):
        place = folder / "val" / f"{int(picture.class_id[0]):06d}"
        shutil.copyfile(picture.file, place / f"{index:06d}{picture.file.suffix}")
    return folder


@contextlib.contextmanager
def _without_fonts() -> Iterator[None]:
    """Ultralytics would fetch a font for plots that are off."""
    fetch = ultralytics.data.utils.check_font
    ultralytics.data.utils.check_font = lambda *_: None
    try:
        yield
    finally:
        ultralytics.data.utils.check_font = fetch
