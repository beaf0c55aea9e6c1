"""What the checkpoint and the exported file answer. Runs in the isolated process.

The file is run by the package's own Python wrapper, which is certified with it.
"""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from export_pipeline.certificate.answers import predictions_of
from export_pipeline.certificate.measurements import (
    PREDICTED_TASKS,
    DatasetMeasured,
    Golden,
    Local,
    dataset_asked,
    golden_asked,
)
from export_pipeline.certificate.partners import Asked
from export_pipeline.certificate.speed import measure_speed
from export_pipeline.certificate.suppressed import compare_suppressed
from export_pipeline.certificate.tensors import Run, TensorAgreement, compare_tensors
from export_pipeline.certificate.tolerances import tolerances_for
from export_pipeline.datasets import Dataset, LabelledPicture, open_dataset
from export_pipeline.errors import BadInput, ExportError, ValidationFailed
from export_pipeline.facts import CheckpointFacts, ModelFacts
from export_pipeline.frameworks import OpenedModel, Thresholds
from export_pipeline.job import JobFolder, JobRecord
from export_pipeline.metadata import build_metadata
from export_pipeline.predictions import Predictions, PredictionSet, save_predictions
from export_pipeline.progress import Say
from export_pipeline.runtimes.python.model_wrapper import ModelWrapper

BATCH_PICTURES = 4
"""Of the larger batch whose tensors are compared; of one golden picture, it and its mirror image."""
SINGLE_PICTURES = 2
"""Of these, go through alone as well."""
PICTURES_AT_A_TIME = 32
"""Of a data set, between two words of progress."""


class LocalMeasuring:
    """draft: the folder that is filled."""

    def __init__(self, folder: JobFolder, record: JobRecord, opened: OpenedModel, draft: Path) -> None:
        self._record = record
        self._config = record.request.export_config
        self._opened = opened
        self._draft = draft
        self._checkpoint: CheckpointFacts = folder.checkpoint()
        self._model: ModelFacts = folder.model()
        self._pictures = sorted(folder.pictures.iterdir())
        if opened.facts.class_names != self._checkpoint.class_names:
            raise ExportError("The checkpoint's classes are not those that it was opened with before.")
        with _running("opened"):
            self._wrapper = _wrapper(folder, record, draft)

    def measure(self, source: str, say: Say) -> None:
        say("Predicting the golden pictures", 0.0)
        golden, telling = self._golden(source)
        say("Comparing raw outputs", 0.2)
        tensors = self._tensors(telling)
        dataset = self._dataset(say)
        say("Measuring the speed", 0.9)
        self._speed()
        local = Local(golden=golden, dataset=dataset, tensors=tensors, versions=self._versions())
        (self._draft / "local.json").write_bytes(local.to_json())

    def _tensors(self, pictures: Sequence[Path]) -> TensorAgreement:
        """Some of these pictures alone, then more of them as one batch where the graph takes one."""
        with _running("run"):
            rows = [self._row(file) for file in _different(pictures)]
            if len(rows) == 1:
                rows.append(self._row(pictures[0], mirrored=True))
        batches = [row[None] for row in rows[:SINGLE_PICTURES]]
        if self._model.max_batch_size > 1:
            batches.append(np.stack(rows[: self._model.max_batch_size]))
        runs = []
        for batch in batches:
            expected = self._opened.raw_outputs(self._config, batch)
            with _running("run"):
                runs.append(Run(expected, self._wrapper.run(batch)))
        allowed = tolerances_for(self._model.precision)
        if self._model.nms_embedded:
            asked = golden_asked(self._record, self._model, lowered=False)
            output = self._model.outputs[0].name
            return compare_suppressed(output, runs, asked, self._model.resize.size, allowed)
        return compare_tensors(self._model.outputs, runs, allowed)

    def _golden(self, source: str) -> tuple[Golden, Sequence[Path]]:
        """At a lowered threshold where the checkpoint finds nothing otherwise and the graph allows it.

        With the pictures in which it finds something: all, where that is none or not known.
        """
        asked = None
        lowered = False
        telling: Sequence[Path] = ()
        if self._checkpoint.task_type in PREDICTED_TASKS:
            asked = golden_asked(self._record, self._model, lowered=False)
            expected = self._by_checkpoint(self._pictures, asked)
            if not asked.in_graph and not any(len(found.confidence) for found in expected.values()):
                lowered = True
                asked = golden_asked(self._record, self._model, lowered=True)
                expected = self._by_checkpoint(self._pictures, asked)
            save_predictions(self._draft / "checkpoint-golden.npz", expected)
            answered = {file.name: self._by_file(file, asked) for file in self._pictures}
            save_predictions(self._draft / "file-golden.npz", answered)
            telling = [file for file in self._pictures if len(expected[file.name].confidence)]
        golden = Golden(source=source, count=len(self._pictures), asked=asked, lowered=lowered)
        return golden, telling or self._pictures

    def _dataset(self, say: Say) -> DatasetMeasured | None:
        asked_for = self._record.request.validation_config
        if asked_for.dataset is None:
            return None
        task_type, names = self._checkpoint.task_type, self._checkpoint.class_names
        dataset = open_dataset(asked_for.dataset, task_type, names, asked_for.max_pictures)
        sha256 = dataset.sha256()
        asked = dataset_asked(self._record, self._model)
        expected: dict[str, Predictions] = {}
        answered: dict[str, Predictions] = {}
        for group in _groups(dataset):
            found = self._by_checkpoint([picture.file for picture in group], asked)
            expected |= {picture.key: found[picture.file.name] for picture in group}
            answered |= {picture.key: self._by_file(picture.file, asked) for picture in group}
            done = len(expected) / len(dataset.pictures)
            say(f"Predicted {len(expected)} of {len(dataset.pictures)} labelled pictures", 0.3 + 0.4 * done)
        save_predictions(self._draft / "checkpoint-dataset.npz", expected)
        save_predictions(self._draft / "file-dataset.npz", answered)
        say("Running the framework's own validation", 0.7)
        by_framework = self._opened.validate(
            asked_for.dataset, self._model.resize.size, asked_for.max_pictures, self._config.head
        )
        return DatasetMeasured(
            name=dataset.name,
            sha256=sha256,
            pictures=len(dataset.pictures),
            asked=asked,
            by_framework=by_framework,
        )

    def _speed(self) -> None:
        with _running("run"):
            performance = measure_speed(
                self._wrapper.run, self._row(self._pictures[0]), max_batch_size=self._model.max_batch_size
            )
        (self._draft / "performance.json").write_text(json.dumps(performance, indent=2) + "\n")

    def _by_checkpoint(self, pictures: Sequence[Path], asked: Asked) -> PredictionSet:
        thresholds = Thresholds(
            asked.confidence, asked.iou if asked.iou is not None else 1.0, asked.max_detections
        )
        return self._opened.predict(pictures, thresholds, self._model.resize.size, self._config.head)

    def _by_file(self, picture: Path, asked: Asked) -> Predictions:
        boxes = self._checkpoint.task_type == "detection"
        with _running(f"run on {picture.name}"):
            answer = self._wrapper.predict(picture, **asked.options())
            return predictions_of(answer, self._checkpoint.class_names, boxes=boxes)

    def _row(self, picture: Path, *, mirrored: bool = False) -> NDArray[Any]:
        bgr = cv2.imread(str(picture), cv2.IMREAD_COLOR)
        if bgr is None:
            raise BadInput(f"The golden picture {picture.name} cannot be decoded.")
        rgb = bgr[:, :: -1 if mirrored else 1, ::-1]
        return np.array(self._wrapper.preprocess(np.ascontiguousarray(rgb, np.uint8)))

    def _versions(self) -> dict[str, str]:
        return {
            **self._model.made_with,
            self._checkpoint.framework: self._checkpoint.framework_version,
            "python": platform.python_version(),
            "onnxruntime": onnxruntime.__version__,
            "numpy": np.__version__,
            "opencv": cv2.__version__,
        }


def _wrapper(folder: JobFolder, record: JobRecord, draft: Path) -> ModelWrapper:
    """The package's wrapper on a folder like the package's, which it needs only to open the model."""
    package = draft / "package"
    package.mkdir()
    (package / "metadata.json").write_text(json.dumps(build_metadata(folder, record)))
    file = folder.model().file
    shutil.copyfile(folder.model_folder / file, package / file)
    wrapper = ModelWrapper(package)
    shutil.rmtree(package)
    return wrapper


@contextmanager
def _running(what: str) -> Iterator[None]:
    """An exported file fails in as many ways as ONNX Runtime knows; all of them mean that it is no good."""
    try:
        yield
    except (ExportError, MemoryError):
        raise
    except Exception as exc:
        raise ValidationFailed(f"The exported file cannot be {what}: {exc}") from exc


def _different(pictures: Sequence[Path]) -> Sequence[Path]:
    """Some of them, from all over the list: neighbours are often forms of one photograph."""
    positions = np.linspace(0, len(pictures) - 1, min(BATCH_PICTURES, len(pictures)))
    return [pictures[int(position)] for position in positions]


def _folder_of(picture: LabelledPicture) -> Path:
    return picture.file.parent


def _groups(dataset: Dataset) -> Iterator[list[LabelledPicture]]:
    """In order, at most so many at a time, and of one folder, so that no file name is there twice."""
    for _, of_folder in groupby(dataset.pictures, key=_folder_of):
        pictures = list(of_folder)
        for begin in range(0, len(pictures), PICTURES_AT_A_TIME):
            yield pictures[begin : begin + PICTURES_AT_A_TIME]
