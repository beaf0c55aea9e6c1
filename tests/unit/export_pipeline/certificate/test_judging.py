from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from export_pipeline.certificate.accuracy import unlike_framework
from export_pipeline.certificate.measurements import (
    DatasetMeasured,
    Golden,
    Local,
    Served,
    gateway_folder,
    load_performance,
    local_folder,
)
from export_pipeline.certificate.partners import Asked
from export_pipeline.certificate.report import Certificate, load_certificate, summary
from export_pipeline.certificate.tensors import Run, TensorAgreement, compare_tensors
from export_pipeline.certificate.tolerances import tolerances_for
from export_pipeline.datasets import open_dataset
from export_pipeline.errors import BadInput, ExportError, ValidationFailed
from export_pipeline.facts import Tensor
from export_pipeline.job import JobFolder, JobRecord
from export_pipeline.predictions import Predictions, save_predictions
from export_pipeline.stages.validate import judge
from tests.support.export_jobs import CLASS_NAMES, PERFORMANCE, make_job
from tests.unit.export_pipeline.certificate.test_partners import HERE, NEAR, THERE, boxes

SCHEMA = json.loads((Path(__file__).parents[4] / "model_repo/metadata.schema.json").read_bytes())
OUTPUT = Tensor(name="rows", shape=(-1, 1), dtype="float32", layout="NC", description="-")
ASKED = Asked(confidence=0.25, iou=0.45, max_detections=300)
SERVED = Served(served=True, reason=None, transport="http", versions={"triton": "2.51.0"}, refusals={})
UNSERVED = Served(served=False, reason="No head.", transport=None, versions={}, refusals={})
UNLOADABLE = UNSERVED.model_copy(update={"loadable": False, "reason": "Triton does not like it."})
NOTHING_FOUND = (
    "The checkpoint finds nothing in the golden pictures: give pictures in which it does (--pictures)."
)
GOLDEN: dict[str, Any] = {"source": "-", "count": 1, "asked": ASKED, "lowered": False}
ONE = boxes((0, 0.9, HERE))
LABELS = "data.yaml", "path: .\nval: images\nnames: [circle, square, triangle, star]\n"

Job = Callable[..., tuple[JobFolder, JobRecord]]


def nothing_in_rows() -> TensorAgreement:
    """Final rows that are all padding: no two can be compared."""
    output = Tensor(
        name="rows",
        shape=(-1, 3, 6),
        dtype="float32",
        layout="NRF",
        description="-",
        parts={"boxes": (0, 4), "scores": (4, 5), "classes": (5, 6)},
        parts_axis=2,
    )
    padding = np.zeros((1, 3, 6), np.float32)
    return compare_tensors([output], [Run([padding], [padding])], tolerances_for("fp32"))


def tensors(off_by: float = 0) -> TensorAgreement:
    expected = np.ones((1, 1), np.float32)
    return compare_tensors([OUTPUT], [Run([expected], [expected + off_by])], tolerances_for("fp32"))


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A job as the steps before leave it; `file`, `gateway`: their predictions of the picture `a.png`."""

    def make(
        checkpoint: Predictions = ONE,
        file: Predictions = ONE,
        gateway: Predictions | None = ONE,
        *,
        served: Served = SERVED,
        tensor_agreement: TensorAgreement | None = None,
        golden: dict[str, Any] | None = None,
        dataset: bool = False,
        drop_max: float = 0.01,
        by_framework: float = 0.99,
        **asked: Any,
    ) -> tuple[JobFolder, JobRecord]:
        wanted: dict[str, Any] = {"fail_threshold": {"accuracy_drop_max": drop_max}}
        if dataset:
            wanted["dataset"] = _labelled(tmp_path / "labelled")
        folder, record = make_job(tmp_path / "job", validation_config=wanted, **asked)
        local = Local(
            golden=Golden.model_validate(GOLDEN | (golden or {})),
            dataset=_measured(tmp_path / "labelled", by_framework) if dataset else None,
            tensors=tensor_agreement or tensors(),
            versions={"torch": "2.15.0"},
        )
        folder.write("measurements/local/local.json", local.to_json())
        folder.write("measurements/gateway/served.json", served.to_json())
        for side, found in (("checkpoint", checkpoint), ("file", file)):
            save_predictions(local_folder(folder) / f"{side}-golden.npz", {"a.png": found})
            save_predictions(local_folder(folder) / f"{side}-dataset.npz", {"images/a.png": found})
        if gateway is not None:
            save_predictions(gateway_folder(folder) / "golden.npz", {"a.png": gateway})
            save_predictions(gateway_folder(folder) / "dataset.npz", {"images/a.png": gateway})
        return folder, record

    return make


def _measured(root: Path, by_framework: float) -> DatasetMeasured:
    sha256 = open_dataset(root, "detection", CLASS_NAMES, None).sha256()
    own = {"mAP50": by_framework}
    return DatasetMeasured(name="data", sha256=sha256, pictures=1, asked=ASKED, by_framework=own)


def _labelled(root: Path) -> str:
    """One picture, with a circle where HERE is."""
    (root / "images").mkdir(parents=True)
    (root / "images/a.png").touch()
    (root / "labels").mkdir()
    (root / "labels/a.txt").write_text("0 0.09375 0.09375 0.125 0.125\n")
    (root / LABELS[0]).write_text(LABELS[1])
    return str(root)


def judged(made: tuple[JobFolder, JobRecord]) -> Certificate:
    """The certificate, and that the step says so."""
    folder, record = made
    said: str | None = None
    try:
        judge(folder, record, lambda message, fraction=None: None)
    except ValidationFailed as exc:
        said = str(exc)
    certificate = load_certificate(folder)
    assert certificate.passed is (said is None)
    assert all(failure in str(said) for failure in certificate.failures[:3])
    return certificate


def test_without_measurements_there_is_no_verdict(job: Job) -> None:
    folder, record = job()
    (folder.measurements / "local/local.json").unlink()

    with pytest.raises(ExportError, match=r"local\.json"):
        judge(folder, record, lambda message, fraction=None: None)
    assert not folder.validation_file.exists()


@pytest.mark.parametrize(
    "made",
    [
        {"checkpoint": boxes(), "file": boxes(), "gateway": boxes()},
        {"checkpoint": boxes(), "file": boxes(), "gateway": None, "served": UNSERVED},
        {"tensor_agreement": nothing_in_rows()},
    ],
    ids=["boxes", "not served", "rows"],
)
def test_where_nothing_is_found_nothing_is_certified(made: dict[str, Any], job: Job) -> None:
    assert judged(job(**made)).failures == (NOTHING_FOUND,)


def test_a_task_that_is_judged_by_its_tensors_needs_no_predictions(job: Job) -> None:
    certificate = judged(job(golden={"asked": None}, gateway=None, served=UNSERVED))

    assert certificate.passed
    assert certificate.paths == {}


@pytest.mark.parametrize(
    ("served", "publish", "failures"),
    [
        (UNSERVED, False, ()),
        (UNSERVED, True, ("The gateway would not serve the model, so it is not published: No head.",)),
        (UNLOADABLE, False, ("The gateway cannot load the model: Triton does not like it.",)),
        (UNLOADABLE, True, ("The gateway cannot load the model: Triton does not like it.",)),
    ],
)
def test_a_model_that_the_gateway_refuses_is_not_published(
    served: Served, publish: bool, failures: tuple[str, ...], job: Job
) -> None:
    certificate = judged(job(gateway=None, served=served, publish="/models" if publish else None))

    assert certificate.failures == failures
    assert certificate.notes == (f"Not compared through the gateway: {served.reason}",)


def test_what_the_gateway_does_not_serve_anyway_may_be_published(job: Job) -> None:
    made = job(golden={"asked": None}, gateway=None, served=UNSERVED, publish="/models", kind="segmentation")
    certificate = judged(made)

    assert certificate.passed
    assert summary(certificate)["gateway_refused"] == "No head."


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("images/a.png", "another picture"),
        ("labels/a.txt", "1 0.5 0.5 0.1 0.1"),
        ("images/b.png", "one more"),
    ],
)
def test_a_data_set_that_has_changed_since_is_refused(
    file: str, content: str, job: Job, tmp_path: Path
) -> None:
    folder, record = job(dataset=True)
    (tmp_path / "labelled" / file).write_text(content)

    with pytest.raises(
        BadInput, match=r"The data set .*labelled has changed since the job in .*job measured"
    ):
        judge(folder, record, lambda message, fraction=None: None)
    assert not folder.validation_file.exists()


def test_nothing_compared_at_all_does_not_pass(job: Job) -> None:
    nothing = compare_tensors([], [], tolerances_for("fp32"))

    assert judged(job(tensor_agreement=nothing)).failures == ("No tensor was compared.",)


@pytest.mark.parametrize(
    ("made", "failures"),
    [
        ({}, []),
        (
            {"file": boxes((0, 0.9, NEAR))},
            ["The file does not answer as the checkpoint does. a.png: 1 too far off"],
        ),
        (
            {"gateway": boxes()},
            ["The gateway does not answer as the checkpoint does. a.png: 1 without a partner"],
        ),
        (
            {"tensor_agreement": tensors(off_by=0.1)},
            ["The file's all in rows are not the checkpoint's: they differ"],
        ),
        (
            {"tensor_agreement": tensors(off_by=np.nan)},
            ["The file's all in rows are not the checkpoint's: some"],
        ),
        (
            {"served": SERVED.model_copy(update={"refusals": {"a.png": "422 image_too_large: No."}})},
            ["The gateway refused a.png: 422 image_too_large: No."],
        ),
        ({"served": UNSERVED, "gateway": None}, []),
        ({"golden": {"asked": None}, "served": UNSERVED, "gateway": None}, []),
        ({"dataset": True}, []),
        (
            {"dataset": True, "gateway": boxes((1, 0.9, HERE))},
            [
                "The gateway does not answer as the checkpoint does. a.png: 1 of another class",
                "mAP50-95 of the gateway is 0.0000, of the checkpoint 0.9950: 0.9950 less, 0.01 is allowed.",
            ],
        ),
    ],
)
def test_each_thing_that_was_measured_can_fail_it(
    made: dict[str, Any], failures: list[str], job: Job
) -> None:
    certificate = judged(job(**made))

    assert len(certificate.failures) == len(failures)
    for failure, begin in zip(certificate.failures, failures, strict=True):
        assert failure.startswith(begin)


@pytest.mark.parametrize(("drop_max", "passed"), [(0.09, False), (0.11, True)])
def test_accuracy_may_drop_by_as_much_as_was_asked_for(drop_max: float, passed: bool, job: Job) -> None:
    """Within the tolerances of a prediction, and still a box that is no longer found at IoU 0.95."""
    exact = boxes((0, 0.9, (10, 10, 50, 48.01)))
    less = boxes((0, 0.9, (10, 10, 50, 47.99)))

    certificate = judged(job(exact, less, exact, dataset=True, drop_max=drop_max))

    assert certificate.passed is passed
    accuracy = certificate.accuracy
    assert accuracy is not None
    assert accuracy.metrics["mAP50-95"] == {"checkpoint": 0.995, "file": 0.8955, "gateway": 0.995}
    assert accuracy.drop == {"file": 0.0995, "gateway": 0.0}
    assert accuracy.by_framework == {"mAP50": 0.99}
    assert len(accuracy.dataset_sha256) == 64


@pytest.mark.parametrize(("own", "notes"), [(0.98, 0), (0.97, 1)])
def test_ultralytics_own_accuracy_is_noted_where_it_is_far_off(own: float, notes: int, job: Job) -> None:
    certificate = judged(job(dataset=True, by_framework=own))

    assert certificate.passed
    assert len(certificate.notes) == notes
    assert certificate.accuracy is not None
    assert "once for each of its classes" in certificate.accuracy.by_framework_note


@pytest.mark.parametrize(("own", "unlike"), [(0.5, []), (0.4, []), (0.3, ["top1"])])
def test_ultralytics_own_classes_are_those_counted_here_but_for_one(
    own: float, unlike: list[str], job: Job
) -> None:
    accuracy = judged(job(dataset=True)).accuracy
    assert accuracy is not None
    figures = {"top1": {"checkpoint": 0.5}, "top5": {"checkpoint": 1.0}}
    by_framework = {"top1": own, "top5": 1.0}
    changed = {"pictures": 10, "judged": "top1", "metrics": figures, "by_framework": by_framework}

    said = list(unlike_framework(accuracy.model_copy(update=changed)))

    assert [sentence.partition(" ")[0] for sentence in said] == unlike


def test_what_limits_the_verdict_is_noted(job: Job) -> None:
    lowered = {"asked": ASKED.model_copy(update={"confidence": 0.01}), "lowered": True}

    certificate = judged(job(gateway=None, served=UNSERVED, golden=lowered))

    assert certificate.notes == (
        "The checkpoint finds nothing in the golden pictures at the request's threshold; all were asked "
        "again at 0.01.",
        "Not compared through the gateway: No head.",
    )


def test_a_checkpoint_that_finds_no_labelled_object_proves_nothing(job: Job) -> None:
    blind = boxes((0, 0.9, THERE))

    assert judged(job(blind, blind, blind, dataset=True)).failures == (
        "mAP50-95 of the checkpoint on data is 0: the checkpoint itself finds none of the labelled objects.",
    )


def test_the_same_measurements_give_the_same_bytes(job: Job) -> None:
    folder, record = job(dataset=True)

    judge(folder, record, lambda message, fraction=None: None)
    first = folder.validation_file.read_bytes()
    judge(folder, record, lambda message, fraction=None: None)

    assert folder.validation_file.read_bytes() == first


@pytest.mark.parametrize(
    "made",
    [
        {},
        {"served": UNSERVED, "gateway": None},
        {"golden": {"asked": None}, "served": UNSERVED, "gateway": None},
        {"dataset": True},
    ],
)
def test_the_summary_is_what_the_schema_asks_for(made: dict[str, Any], job: Job) -> None:
    certificate = judged(job(**made))
    schema = {"$ref": "#/properties/validation", "properties": SCHEMA["properties"], "$defs": SCHEMA["$defs"]}

    jsonschema.Draft202012Validator(schema).validate(summary(certificate))


def test_the_summary_has_the_figures(job: Job) -> None:
    folder, record = job(file=boxes((0, 0.9005, HERE)), dataset=True)
    certificate = judged((folder, record))

    short = summary(certificate)

    assert (short["pictures"], short["predictions"]) == (1, 1)
    assert short["paths"]["file"] == {
        "tensor_max_abs": 0.0,
        "iou_min": 1.0,
        "confidence_max": pytest.approx(0.0005, abs=1e-6),
        "unmatched": 0,
    }
    assert short["accuracy"]["metrics"]["mAP50"] == dict.fromkeys(("checkpoint", "file", "gateway"), 0.995)
    assert len(short["report_sha256"]) == 64
    assert folder.digest(["validation.json"]) is not None


def test_the_report_is_found_by_the_summarys_hash(job: Job) -> None:
    folder, record = job()
    short = summary(judged((folder, record)))

    assert short["report_sha256"] == hashlib.sha256(folder.validation_file.read_bytes()).hexdigest()


def test_a_certificate_that_did_not_pass_has_no_summary(job: Job) -> None:
    with pytest.raises(ValueError, match="only a certificate that passed"):
        summary(judged(job(file=boxes())))


def test_performance_is_what_was_measured_or_nothing(job: Job) -> None:
    folder, _ = job()
    assert load_performance(folder) is None

    folder.write("measurements/local/performance.json", json.dumps(PERFORMANCE).encode())
    assert load_performance(folder) == PERFORMANCE


@pytest.mark.parametrize(
    "forged",
    [
        {"throughput_ips": float("nan")},
        {"throughput_ips": float("inf")},
        {"latency_ms": {"p50": float("nan"), "p90": 1.0}},
        {"hardware": "two\nlines"},
        {"batch_size": 0},
        {"surprise": 1},
    ],
)
def test_performance_that_cannot_be_is_refused(job: Job, forged: dict[str, object]) -> None:
    folder, _ = job()
    folder.write("measurements/local/performance.json", json.dumps(PERFORMANCE | forged).encode())

    with pytest.raises(ExportError, match="not what an earlier stage wrote"):
        load_performance(folder)
