"""The verdict: everything that was measured, put together."""

from __future__ import annotations

from collections.abc import Iterator

from export_pipeline.certificate.accuracy import measure_accuracy, unlike_framework
from export_pipeline.certificate.agreement import Agreement, compare
from export_pipeline.certificate.measurements import (
    PREDICTED_TASKS,
    Local,
    Served,
    gateway_folder,
    load_dataset,
    load_local,
    load_served,
    local_folder,
)
from export_pipeline.certificate.report import (
    Accuracy,
    Certificate,
    GatewayPath,
    Path,
    Pictures,
    Side,
    Subject,
)
from export_pipeline.certificate.tensors import NOTHING_TO_COMPARE, TensorAgreement
from export_pipeline.certificate.tolerances import Tolerances, tolerances_for
from export_pipeline.job import JobFolder, JobRecord
from export_pipeline.predictions import PredictionSet, load_predictions
from export_pipeline.request import TaskType

REFUSALS_NAMED = 3
NOTHING_FOUND = (
    "The checkpoint finds nothing in the golden pictures: give pictures in which it does (--pictures)."
)


def judge_job(folder: JobFolder, record: JobRecord) -> Certificate:
    """The same measurements give the same bytes. Raises ExportError where some are missing."""
    local, served, model = load_local(folder), load_served(folder), folder.model()
    allowed = tolerances_for(model.precision)
    paths = _paths(folder, local, served, allowed)
    accuracy = _accuracy(folder, record, local, served)
    unserved = _unserved(record, folder.checkpoint().task_type, served)
    failures = (
        *unserved,
        *_refusals(served),
        *_emptiness(local.tensors, paths),
        *_disagreements(paths),
        *_tensor_failures(local.tensors),
        *_accuracy_failures(accuracy),
    )
    return Certificate(
        passed=not failures,
        failures=failures,
        notes=tuple(_notes(local, served, accuracy)),
        subject=_subject(folder, record),
        tolerances=allowed,
        tensors=local.tensors,
        pictures=Pictures(**local.golden.model_dump()),
        paths=paths,
        gateway=GatewayPath(**served.model_dump(exclude={"refusals"})),
        accuracy=accuracy,
        versions=local.versions,
    )


def _subject(folder: JobFolder, record: JobRecord) -> Subject:
    checkpoint, model = folder.checkpoint(), folder.model()
    return Subject(
        model_name=record.request.name,
        task_type=checkpoint.task_type,
        framework=checkpoint.framework,
        export_format=model.export_format,
        precision=model.precision,
        head=model.head,
        nms_embedded=model.nms_embedded,
        checkpoint_sha256=checkpoint.sha256,
        model_sha256=model.sha256,
    )


def _paths(folder: JobFolder, local: Local, served: Served, allowed: Tolerances) -> dict[Path, Agreement]:
    asked = local.golden.asked
    if asked is None:
        return {}
    here, there = local_folder(folder), gateway_folder(folder)
    expected = load_predictions(here / "checkpoint-golden.npz")
    paths: dict[Path, Agreement] = {
        "file": compare(expected, load_predictions(here / "file-golden.npz"), asked, allowed)
    }
    if served.served:
        paths["gateway"] = compare(expected, load_predictions(there / "golden.npz"), asked, allowed)
    return paths


def _accuracy(folder: JobFolder, record: JobRecord, local: Local, served: Served) -> Accuracy | None:
    dataset = load_dataset(folder, record, local.dataset)
    if dataset is None or local.dataset is None:
        return None
    here = local_folder(folder)
    predictions: dict[Side, PredictionSet] = {
        "checkpoint": load_predictions(here / "checkpoint-dataset.npz"),
        "file": load_predictions(here / "file-dataset.npz"),
    }
    if served.served:
        predictions["gateway"] = load_predictions(gateway_folder(folder) / "dataset.npz")
    drop_max = record.request.validation_config.fail_threshold.accuracy_drop_max
    return measure_accuracy(dataset, local.dataset, predictions, drop_max)


def _unserved(record: JobRecord, task_type: TaskType, served: Served) -> Iterator[str]:
    """A model that does not load is no good; one that the gateway declines is not published to gateways."""
    if not served.loadable:
        yield f"The gateway cannot load the model: {served.reason}"
    elif not served.served and record.request.publish is not None and task_type in PREDICTED_TASKS:
        yield f"The gateway would not serve the model, so it is not published: {served.reason}"


def _emptiness(tensors: TensorAgreement, paths: dict[Path, Agreement]) -> Iterator[str]:
    """Where there is nothing, everything agrees. Of rows, an output may have none that can be compared."""
    nothing_predicted = paths and not any(agreement.predictions for agreement in paths.values())
    if nothing_predicted or any(part.failure == NOTHING_TO_COMPARE for part in tensors.parts):
        yield NOTHING_FOUND


def _refusals(served: Served) -> Iterator[str]:
    for name, reason in list(served.refusals.items())[:REFUSALS_NAMED]:
        yield f"The gateway refused {name}: {reason}"
    if len(served.refusals) > REFUSALS_NAMED:
        yield f"The gateway refused {len(served.refusals)} pictures in all."


def _disagreements(paths: dict[Path, Agreement]) -> Iterator[str]:
    for path, agreement in paths.items():
        for failure in agreement.failures:
            yield f"The {path} does not answer as the checkpoint does. {failure}"


def _tensor_failures(tensors: TensorAgreement) -> Iterator[str]:
    for part in tensors.parts:
        if not part.passed and part.failure != NOTHING_TO_COMPARE:
            yield (
                f"The file's {part.part} in {part.output} are not the checkpoint's: {part.failure} "
                f"(atol {part.atol:g}, rtol {part.rtol:g})."
            )
    if not tensors.parts:
        yield "No tensor was compared."


def _accuracy_failures(accuracy: Accuracy | None) -> Iterator[str]:
    if accuracy is None:
        return
    if not accuracy.metrics[accuracy.judged]["checkpoint"]:
        yield (
            f"{accuracy.judged} of the checkpoint on {accuracy.dataset} is 0: "
            "the checkpoint itself finds none of the labelled objects."
        )
    if accuracy.judged == "top1":
        yield from unlike_framework(accuracy)
    for path, drop in accuracy.drop.items():
        if not drop <= accuracy.accuracy_drop_max:
            figures = accuracy.metrics[accuracy.judged]
            yield (
                f"{accuracy.judged} of the {path} is {figures[path]:.4f}, of the checkpoint "
                f"{figures['checkpoint']:.4f}: {drop:.4f} less, {accuracy.accuracy_drop_max:g} is allowed."
            )


def _notes(local: Local, served: Served, accuracy: Accuracy | None) -> Iterator[str]:
    asked = local.golden.asked
    if asked is None:
        yield "Predictions of this task are not compared; its tensors are."
    elif local.golden.lowered:
        yield (
            "The checkpoint finds nothing in the golden pictures at the request's threshold; "
            f"all were asked again at {asked.confidence:g}."
        )
    if not served.served:
        yield f"Not compared through the gateway: {served.reason}"
    if accuracy is not None and accuracy.asked.in_graph:
        yield f"Accuracy is measured at the graph's thresholds (confidence {accuracy.asked.confidence:g})."
    if accuracy is not None and accuracy.judged != "top1":
        yield from unlike_framework(accuracy)
