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

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from export_pipeline.certificate.partners import Asked
from export_pipeline.certificate.tensors import TensorAgreement
from export_pipeline.datasets import Dataset, open_dataset
from export_pipeline.errors import BadInput
from export_pipeline.facts import Facts, ModelFacts
from export_pipeline.job import JobFolder, JobRecord
from export_pipeline.metadata import TOP_K
from export_pipeline.text import PlainText

AboveZero = Annotated[float, Field(gt=0, allow_inf_nan=False)]
PREDICTED_TASKS = frozenset({"detection", "classification"})
"""Whose predictions are boxes or classes. Of the others, only tensors are compared."""

LOWERED_CONFIDENCE = 0.01
DATASET_CONFIDENCE = 0.001
DATASET_IOU = 0.7
DATASET_DETECTIONS = 300


class Golden(Facts):
    """asked: None where the task has no predictions that can be compared. lowered: see `golden_asked`."""

    source: str
    count: int
    asked: Asked | None
    lowered: bool


class DatasetMeasured(Facts):
    """sha256: see `Dataset.sha256`. by_framework: the framework's own figures for the checkpoint."""

    name: str
    sha256: str
    pictures: int
    asked: Asked
    by_framework: dict[str, float]


class Local(Facts):
    golden: Golden
    dataset: DatasetMeasured | None
    tensors: TensorAgreement
    versions: dict[str, str]


class Latency(Facts):
    p50: AboveZero
    p90: AboveZero


class Performance(Facts):
    """As metadata.json has it."""

    latency_ms: Latency
    throughput_ips: AboveZero
    hardware: PlainText
    batch_size: Annotated[int, Field(ge=1)]


class Served(Facts):
    """served: whether the gateway answers for this model; reason: why not.

    loadable: False where the gateway does not know the model or Triton does not load it, which no export may
    come to; a gateway may decline what was asked for, a task, say. refusals: why a picture got no
    predictions, by its name.
    """

    served: bool
    loadable: bool = True
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


def load_dataset(folder: JobFolder, record: JobRecord, measured: DatasetMeasured | None) -> Dataset | None:
    """The data set that was measured; None without one. Raises BadInput where it is not the same any more."""
    wanted, checkpoint = record.request.validation_config, folder.checkpoint()
    if wanted.dataset is None or measured is None:
        return None
    dataset = open_dataset(wanted.dataset, checkpoint.task_type, checkpoint.class_names, wanted.max_pictures)
    if dataset.sha256() != measured.sha256:
        raise BadInput(
            f"The data set {wanted.dataset} has changed since the job in {folder.path} measured on it: "
            "export into another folder, or measure again with `visiongate-export resume --from validate`."
        )
    return dataset


def load_performance(folder: JobFolder) -> dict[str, Any] | None:
    """metadata.json's `performance`; None where nothing was measured."""
    file = local_folder(folder) / "performance.json"
    if not file.exists():
        return None
    return Performance.load(file).model_dump(mode="json")


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
