"""What was measured, as it lies in the job's folder between the steps.

::

    measurements/local/local.json           Local                       by the isolated process
                      checkpoint-golden.npz, file-golden.npz            predictions, where the task has some
                      checkpoint-dataset.npz, file-dataset.npz          where a data set was given
                      performance.json                                  metadata.json's `performance`
    measurements/gateway/served.json        Served                      by the host
                        golden.npz, dataset.npz                         where the gateway serves the task
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from export_pipeline.certificate.partners import Asked
from export_pipeline.certificate.tensors import TensorAgreement
from export_pipeline.facts import Facts, ModelFacts
from export_pipeline.job import JobFolder, JobRecord

PREDICTED_TASKS = frozenset({"detection", "classification"})
"""Whose predictions are boxes or classes. Of the others, only tensors are compared."""

LOWERED_CONFIDENCE = 0.01
DATASET_CONFIDENCE = 0.001
DATASET_IOU = 0.7
DATASET_DETECTIONS = 300
TOP_K = 5


class Golden(Facts):
    """asked: None where the task has no predictions that can be compared. lowered: see `golden_asked`."""

    source: str
    count: int
    asked: Asked | None
    lowered: bool


class DatasetMeasured(Facts):
    """by_framework: the framework's own figures for the checkpoint."""

    name: str
    pictures: int
    asked: Asked
    by_framework: dict[str, float]


class Local(Facts):
    golden: Golden
    dataset: DatasetMeasured | None
    tensors: TensorAgreement
    versions: dict[str, str]


class Served(Facts):
    """refusals: why a picture got no predictions, by its name."""

    served: bool
    reason: str | None
    transport: str | None
    versions: dict[str, str]
    refusals: dict[str, str]


def local_folder(folder: JobFolder) -> Path:
    return folder.measurements / "local"


def gateway_folder(folder: JobFolder) -> Path:
    return folder.measurements / "gateway"


def load_local(folder: JobFolder) -> Local:
    return Local.load(local_folder(folder) / "local.json")


def load_served(folder: JobFolder) -> Served:
    return Served.load(gateway_folder(folder) / "served.json")


def load_performance(folder: JobFolder) -> dict[str, Any] | None:
    """metadata.json's `performance`; None where nothing was measured."""
    file = local_folder(folder) / "performance.json"
    if not file.exists():
        return None
    performance: dict[str, Any] = json.loads(file.read_bytes())
    return performance


def golden_asked(record: JobRecord, model: ModelFacts, *, lowered: bool) -> Asked:
    """The request's own thresholds; lowered, where the checkpoint finds nothing at them."""
    config = record.request.export_config
    if model.head == "classification":
        return Asked(confidence=0.0, iou=None, max_detections=TOP_K)
    return Asked(
        confidence=LOWERED_CONFIDENCE if lowered else config.confidence_threshold,
        iou=config.iou_threshold if _suppresses(model) else None,
        max_detections=config.max_detections,
        in_graph=model.nms_embedded,
    )


def dataset_asked(record: JobRecord, model: ModelFacts) -> Asked:
    """Low thresholds, as average precision needs them; those in the graph are what they are."""
    if model.head == "classification" or model.nms_embedded:
        return golden_asked(record, model, lowered=False)
    iou = DATASET_IOU if _suppresses(model) else None
    return Asked(confidence=DATASET_CONFIDENCE, iou=iou, max_detections=DATASET_DETECTIONS)


def _suppresses(model: ModelFacts) -> bool:
    return model.nms_embedded or model.head == "yolo_raw"
