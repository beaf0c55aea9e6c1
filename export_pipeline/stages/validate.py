"""The stage that finds out whether the export answers as the checkpoint does, before anybody else asks it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from export_pipeline.certificate.answers import predictions_of
from export_pipeline.certificate.gateway_path import GatewayTrial, ModelState, Question, gateway_trial
from export_pipeline.certificate.judging import judge_job
from export_pipeline.certificate.measurements import (
    Served,
    gateway_folder,
    load_dataset,
    load_local,
    local_folder,
)
from export_pipeline.certificate.partners import Asked
from export_pipeline.errors import ExportError, ValidationFailed
from export_pipeline.job import JobFolder, JobRecord
from export_pipeline.predictions import Predictions, save_predictions
from export_pipeline.progress import Say

FIGURES_TOLD = 3
UNKNOWN = ModelState(served=False, loadable=False, reason="It does not know the model.")


def collect_pictures(folder: JobFolder, record: JobRecord, say: Say) -> None:
    """Leaves the golden pictures in `pictures/`."""
    from export_pipeline.certificate import golden_pictures  # noqa: PLC0415  # where this step runs only

    own = record.request.validation_config.pictures
    with folder.drafting(folder.pictures) as draft:
        if own is None:
            count = golden_pictures.draw_default_pictures(draft)
        else:
            count = golden_pictures.copy_pictures(own, draft)
    say(f"{count} golden pictures")


def measure(folder: JobFolder, record: JobRecord, say: Say) -> None:
    """Leaves what the checkpoint and the exported file answer in `measurements/local/`."""
    from export_pipeline.certificate.golden_pictures import DEFAULT_SOURCE  # noqa: PLC0415  # as above
    from export_pipeline.certificate.measuring import LocalMeasuring  # noqa: PLC0415  # needs ONNX Runtime
    from export_pipeline.frameworks import open_checkpoint  # noqa: PLC0415  # opens torch

    own = record.request.validation_config.pictures
    opened = open_checkpoint(folder.checkpoint_file, folder.checkpoint().framework)
    with folder.drafting(local_folder(folder)) as draft:
        measuring = LocalMeasuring(folder, record, opened, draft)
        measuring.measure(DEFAULT_SOURCE if own is None else "the caller's own", say)


def serve(folder: JobFolder, record: JobRecord, say: Say) -> None:
    """Leaves what the gateway answers in `measurements/gateway/`.

    Raises BadInput where the data set has changed since it was measured on.
    """
    from export_pipeline.stages.package import write_entry  # noqa: PLC0415  # imports Triton's protobuf

    with (
        folder.drafting(gateway_folder(folder)) as draft,
        tempfile.TemporaryDirectory(dir=draft, prefix="repository-") as repository,
    ):
        write_entry(folder, record, Path(repository), performance=None, validation=None)
        say("Starting a gateway and a Triton for it", 0.0)
        with gateway_trial(Path(repository)) as trial:
            _ask_all(folder, record, trial, draft, say)


def judge(folder: JobFolder, record: JobRecord, say: Say) -> None:
    """Leaves `validation.json`, also where it says no. Raises ValidationFailed then; BadInput as `serve`."""
    certificate = judge_job(folder, record)
    folder.write(folder.validation_file.name, certificate.to_json())
    if not certificate.passed:
        worst = "\n".join(certificate.failures[:FIGURES_TOLD])
        raise ValidationFailed(f"{worst}\nNothing is published; {folder.validation_file} says all of it.")
    for note in certificate.notes:
        say(note)


def _ask_all(folder: JobFolder, record: JobRecord, trial: GatewayTrial, draft: Path, say: Say) -> None:
    local, checkpoint = load_local(folder), folder.checkpoint()
    state = trial.models.get(record.request.name, UNKNOWN)
    if not state.served:
        _write_served(draft, reason=str(state.reason), loadable=state.loadable, versions=trial.versions)
        return
    if local.golden.asked is None:
        reason = f"What it answers to {checkpoint.task_type} is not compared yet."
        _write_served(draft, reason=reason, versions=trial.versions)
        return
    golden = [(file.name, file) for file in sorted(folder.pictures.iterdir())]
    if len(golden) != local.golden.count:
        raise ExportError(
            f"{folder.pictures} holds {len(golden)} pictures; {local.golden.count} were measured."
        )
    dataset = load_dataset(folder, record, local.dataset)
    refusals: dict[str, str] = {}
    asker = _Asker(trial, record.request.name, checkpoint.class_names, checkpoint.task_type == "detection")
    found = asker.ask(golden, local.golden.asked, refusals)
    save_predictions(draft / "golden.npz", found)
    say(f"The gateway answered {len(found)} golden pictures", 0.5)
    if dataset is not None and local.dataset is not None:
        labelled = [(picture.key, picture.file) for picture in dataset.pictures]
        save_predictions(draft / "dataset.npz", asker.ask(labelled, local.dataset.asked, refusals))
    _write_served(draft, refusals=refusals, versions=trial.versions)


class _Asker:
    def __init__(self, trial: GatewayTrial, model: str, class_names: Sequence[str], boxes: bool) -> None:
        self._trial = trial
        self._model = model
        self._class_names = class_names
        self._boxes = boxes

    def ask(
        self, pictures: Sequence[tuple[str, Path]], asked: Asked, refusals: dict[str, str]
    ) -> dict[str, Predictions]:
        """Predictions by the pictures' names; a picture that is refused is noted instead."""
        questions = [Question(self._model, file.absolute(), asked.options()) for _, file in pictures]
        found: dict[str, Predictions] = {}
        for (name, _), answer in zip(pictures, self._trial.ask(questions), strict=True):
            if answer.refusal is not None:
                refusals[name] = answer.refusal
            else:
                found[name] = predictions_of(answer.answer, self._class_names, boxes=self._boxes)
        return found


def _write_served(
    draft: Path,
    *,
    reason: str | None = None,
    loadable: bool = True,
    refusals: dict[str, str] | None = None,
    versions: dict[str, str] | None = None,
) -> None:
    """reason: why the gateway does not serve it; None where it does."""
    served = Served(
        served=reason is None,
        loadable=loadable,
        reason=reason,
        transport="http" if reason is None else None,
        versions=versions or {},
        refusals=refusals or {},
    )
    (draft / "served.json").write_bytes(served.to_json())
