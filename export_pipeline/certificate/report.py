"""`validation.json`: the certificate as it is written, and the short form that goes into metadata.json."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

from export_pipeline.certificate.agreement import Agreement
from export_pipeline.certificate.partners import Asked
from export_pipeline.certificate.tensors import TensorAgreement
from export_pipeline.certificate.tolerances import Tolerances
from export_pipeline.facts import Facts, Head
from export_pipeline.job import JobFolder
from export_pipeline.request import ExportFormat, Framework, Precision, TaskType

Path = Literal["file", "gateway"]
Side = Literal["checkpoint", "file", "gateway"]


class Subject(Facts):
    """What is certified: this file, made of this checkpoint."""

    model_name: str
    task_type: TaskType
    framework: Framework
    export_format: ExportFormat
    precision: Precision
    head: Head
    nms_embedded: bool
    checkpoint_sha256: str
    model_sha256: str


class Pictures(Facts):
    """The golden ones. asked: the thresholds of everybody; lowered: because at the request's own the
    checkpoint finds nothing."""

    count: int
    source: str
    asked: Asked | None
    lowered: bool


class GatewayPath(Facts):
    """served: whether the gateway answers for this model; reason: why not. loadable: see `Served`."""

    served: bool
    loadable: bool = True
    reason: str | None
    transport: str | None
    versions: dict[str, str]


class Accuracy(Facts):
    """On a labelled data set. metrics: by name (mAP50, mAP50-95 or top1, top5), then by side; 0 to 1.

    dataset_sha256: over its pictures and labels. drop: of the metric that is judged, the checkpoint's minus
    the path's. by_framework: what the framework's own validation says of the checkpoint; by_framework_note:
    how far that is comparable.
    """

    dataset: str
    dataset_sha256: str
    pictures: int
    asked: Asked
    metrics: dict[str, dict[Side, float]]
    judged: str
    drop: dict[Path, float]
    accuracy_drop_max: float
    by_framework: dict[str, float]
    by_framework_note: str


class Certificate(Facts):
    """failures: sentences, the gravest first; none where it passed. notes: what limits what this says."""

    passed: bool
    failures: tuple[str, ...]
    notes: tuple[str, ...]
    subject: Subject
    tolerances: Tolerances
    tensors: TensorAgreement
    pictures: Pictures
    paths: dict[Path, Agreement]
    gateway: GatewayPath
    accuracy: Accuracy | None
    versions: dict[str, str]


def load_certificate(folder: JobFolder) -> Certificate:
    return Certificate.load(folder.validation_file)


def summary(certificate: Certificate) -> dict[str, Any]:
    """metadata.json's `validation`. Raises ValueError of a certificate that did not pass."""
    if not certificate.passed:
        raise ValueError("only a certificate that passed is summed up")
    predictions = max((path.predictions for path in certificate.paths.values()), default=0)
    short: dict[str, Any] = {
        "passed": True,
        "report_sha256": hashlib.sha256(certificate.to_json()).hexdigest(),
        "pictures": certificate.pictures.count,
        "predictions": predictions,
        "paths": {
            "file": _known(tensor_max_abs=_tensor_max_abs(certificate)) | _difference(certificate, "file")
        },
    }
    if "gateway" in certificate.paths:
        short["paths"]["gateway"] = _difference(certificate, "gateway")
    if certificate.gateway.reason is not None:
        short["gateway_refused"] = certificate.gateway.reason
    if certificate.accuracy is not None:
        short["accuracy"] = {
            "dataset": certificate.accuracy.dataset,
            "pictures": certificate.accuracy.pictures,
            "metrics": {name: dict(sides) for name, sides in certificate.accuracy.metrics.items()},
        }
    return short


def _difference(certificate: Certificate, path: Path) -> dict[str, float]:
    found = certificate.paths.get(path)
    if found is None:
        return {}
    return _known(iou_min=found.iou_min, confidence_max=found.confidence_max, unmatched=found.unmatched)


def _tensor_max_abs(certificate: Certificate) -> float | None:
    return max((part.max_abs for part in certificate.tensors.parts if part.max_abs is not None), default=None)


def _known(**figures: float | None) -> dict[str, float]:
    return {name: figure for name, figure in figures.items() if figure is not None}
