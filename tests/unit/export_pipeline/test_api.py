from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export_pipeline.api import ExportResult, export, resume
from export_pipeline.certificate.measurements import DatasetMeasured, Golden, Local
from export_pipeline.certificate.partners import Asked
from export_pipeline.certificate.tensors import TensorAgreement
from export_pipeline.datasets import open_dataset
from export_pipeline.errors import BadInput, ExportError
from export_pipeline.job import JobFolder, JobRecord, Stage, StepRecord
from export_pipeline.request import ExportRequest, read_request
from tests.support.export_jobs import CLASS_NAMES, make_job
from tests.support.export_stages import METADATA, Events, FakeStages, HereExecutor

GOLDEN_PICTURES = Path(__file__).parents[2] / "golden" / "pictures"
STAGES: list[Stage] = ["checkpoint", "export", "validate", "package", "publish"]


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> FakeStages:
    return FakeStages(monkeypatch)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint and a repository, in the current folder."""
    (tmp_path / "best.pt").write_bytes(b"a checkpoint")
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def asked(**changed: Any) -> ExportRequest:
    return read_request({"checkpoint": "best.pt", "name": "cats", "publish": "models", **changed})


def run(out: str = "job", progress: Events | None = None, **changed: Any) -> ExportResult:
    return export(asked(**changed), Path(out), executor=HereExecutor(), progress=progress)


def again(progress: Events | None = None, **how: Any) -> ExportResult:
    return resume(Path("job"), executor=HereExecutor(), progress=progress, **how)


def test_a_job_from_its_beginning_to_its_end(stages: FakeStages, world: Path) -> None:
    result = run()

    assert (result.job, result.name, result.version) == (world / "job", "cats", 1)
    assert result.package == world / "job" / "cats-1.zip"
    assert result.package.is_file()
    assert result.published == world / "models" / "cats"
    assert result.certificate == METADATA["validation"]
    assert list(result.seconds) == STAGES


def test_without_a_repository_nothing_is_published(stages: FakeStages, world: Path) -> None:
    result = run(publish=None)

    assert (result.published, result.version) == (None, 1)
    assert list(result.seconds) == STAGES[:-1]


def test_jobs_have_ids_of_their_own_and_keep_them(stages: FakeStages, world: Path) -> None:
    ids = []
    for out in ("one", "other", "one"):
        run(out)
        ids.append(JobFolder(Path(out)).record().job_id)

    assert len(ids[0]) == 32
    assert (ids[0] == ids[2], ids[0] == ids[1]) == (True, False)


def test_the_request_is_kept_with_absolute_paths(stages: FakeStages, world: Path) -> None:
    run()

    kept = JobFolder(Path("job")).record().request
    assert (kept.checkpoint, kept.publish) == (str(world / "best.pt"), world / "models")


def test_the_same_request_goes_on_with_its_job(stages: FakeStages, world: Path) -> None:
    def stop(name: str) -> None:
        if name == "validate.serve":
            raise ExportError("Stopped.")

    stages.inside = stop
    with pytest.raises(ExportError, match="Stopped"):
        run()
    stages.inside, stages.ran = lambda _name: None, []
    events = Events()

    result = run(progress=events)

    assert stages.ran[0] == "validate.serve"
    assert events.of_kind("done_before") == [
        "checkpoint.fetch",
        "checkpoint.inspect",
        "export.graph",
        "validate.pictures",
        "validate.measure",
    ]
    assert result.published is not None


def test_other_limits_are_no_other_request(stages: FakeStages, world: Path) -> None:
    run()

    run(limits={"memory_bytes": 2**31})

    assert JobFolder(Path("job")).record().request.limits.memory_bytes == 2**31
    assert len(stages.ran) == 10


@pytest.mark.parametrize(
    "changed",
    [{"name": "dogs"}, {"export_config": {"imgsz": 640}}, {"publish": None}],
    ids=lambda c: next(iter(c)),
)
def test_another_request_needs_another_folder(
    stages: FakeStages, world: Path, changed: dict[str, Any]
) -> None:
    run()

    with pytest.raises(BadInput, match=r"job holds the job of another request"):
        run(**changed)


def test_another_checkpoint_of_the_same_name_needs_another_folder(stages: FakeStages, world: Path) -> None:
    run()
    (world / "best.pt").write_bytes(b"trained again")

    with pytest.raises(BadInput, match=r"The checkpoint has changed since the job in .* fetched it"):
        run()


@pytest.fixture
def golden(world: Path) -> Path:
    (world / "golden").mkdir()
    for name in ("tiny.png", "grey.jpg"):
        shutil.copy(GOLDEN_PICTURES / name, world / "golden")
    return world / "golden"


@pytest.mark.parametrize(
    "change",
    [
        lambda golden: (golden / "tiny.png").unlink(),
        lambda golden: shutil.copy(golden / "grey.jpg", golden / "more.jpg"),
        lambda golden: (golden / "tiny.png").write_bytes(b"other pixels"),
    ],
    ids=["fewer", "more", "others"],
)
def test_golden_pictures_that_have_changed_are_noticed(
    stages: FakeStages, golden: Path, change: Callable[[Path], object]
) -> None:
    asked_for: dict[str, Any] = {"publish": None, "validation_config": {"pictures": "golden"}}
    run(**asked_for)
    run(**asked_for)
    change(golden)

    go_ons: list[Callable[[], object]] = [lambda: run(**asked_for), again]
    for go_on in go_ons:
        with pytest.raises(BadInput, match=r"The golden pictures in .*golden have changed since the job in"):
            go_on()
    assert again(from_stage="validate").package is not None


def test_golden_pictures_that_are_gone_are_no_others(stages: FakeStages, golden: Path) -> None:
    asked_for: dict[str, Any] = {"publish": None, "validation_config": {"pictures": "golden"}}
    first = run(**asked_for)
    shutil.rmtree(golden)

    assert run(**asked_for) == first


def test_a_data_set_that_has_changed_is_noticed(tmp_path: Path) -> None:
    """Before anything is done, which these folders are not fit for."""
    write_dataset(tmp_path / "data")
    record = measured_job(tmp_path / "job", tmp_path / "data")
    (tmp_path / "data/labels/a.txt").write_text("1 0.5 0.5 0.1 0.1\n")

    job = tmp_path / "job"
    go_ons: list[Callable[[], object]] = [lambda: export(record.request, job), lambda: resume(job)]
    for go_on in go_ons:
        with pytest.raises(
            BadInput, match=r"The data set .*data has changed since the job in .*job measured"
        ):
            go_on()


def write_dataset(root: Path) -> None:
    for name, content in {
        "data.yaml": f"val: images\nnames: {list(CLASS_NAMES)}\n",
        "images/a.png": "",
        "labels/a.txt": "0 0.5 0.5 0.1 0.1\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)


def measured_job(path: Path, dataset: Path) -> JobRecord:
    """A job that has measured on this data set."""
    checkpoint = path.with_name("best.pt")
    checkpoint.touch()
    folder, record = make_job(path, checkpoint=str(checkpoint), validation_config={"dataset": str(dataset)})
    asked_with = Asked(confidence=0.001, iou=0.7, max_detections=300)
    measured = DatasetMeasured(
        name="data",
        sha256=open_dataset(dataset, "detection", CLASS_NAMES, None).sha256(),
        pictures=1,
        asked=asked_with,
        by_framework={},
    )
    local = Local(
        golden=Golden(source="-", count=0, asked=None, lowered=False),
        dataset=measured,
        tensors=TensorAgreement(batch_sizes=(), parts=(), passed=False),
        versions={},
    )
    folder.write("measurements/local/local.json", local.to_json())
    done = StepRecord(stage="validate", seconds=1, sha256="", inputs_sha256="", command="")
    folder.save_step("validate.measure", done)
    return record


def test_files_of_somebody_else_stay_as_they_are(stages: FakeStages, world: Path) -> None:
    (world / "job").mkdir()
    (world / "job" / "thesis.tex").write_text("mine")

    with pytest.raises(BadInput, match=r"job is not empty and holds no export job: thesis\.tex"):
        run()
    assert [path.name for path in (world / "job").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("make", "out", "sentence"),
    [
        (lambda world: (world / "job").write_text("a file"), "job", "job is not a folder"),
        (lambda world: (world / "file").write_text("a file"), "file/job", "file is not a folder"),
        (lambda world: None, "models/job", "lies in the model repository"),
        (lambda world: (world / "models").rmdir(), "job", "The model repository .*models does not exist"),
        (
            lambda world: ((world / "models").rmdir(), (world / "models").touch()),
            "job",
            "The model repository .*models is not a folder",
        ),
        (lambda world: (world / "best.pt").unlink(), "job", r"The checkpoint .*best\.pt does not exist"),
        (lambda world: (world / "best.pt").write_bytes(b""), "job", r"The checkpoint .*best\.pt is empty"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_made(
    stages: FakeStages, world: Path, make: Callable[[Path], object], out: str, sentence: str
) -> None:
    make(world)
    before = sorted(world.rglob("*"))

    with pytest.raises(BadInput, match=sentence):
        run(out)
    assert sorted(world.rglob("*")) == before


def test_a_name_that_is_taken_is_said_before_anything_is_made(stages: FakeStages, world: Path) -> None:
    (world / "models" / "cats").mkdir()

    with pytest.raises(BadInput, match="cats"):
        run()
    assert not (world / "job").exists()


def test_a_finished_job_is_finished_although_its_inputs_are_gone(stages: FakeStages, world: Path) -> None:
    first = run()
    (world / "best.pt").unlink()

    assert run() == first


def test_a_job_goes_on_from_any_folder(
    stages: FakeStages, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    stages.ran = []
    monkeypatch.chdir("/")

    result = resume(world / "job", executor=HereExecutor())

    assert (stages.ran, result.published) == ([], world / "models" / "cats")


@pytest.mark.parametrize("stage", STAGES)
def test_one_stage_is_done_again(stages: FakeStages, world: Path, stage: Stage) -> None:
    run()
    stages.ran = []

    again(from_stage=stage, until=stage)

    assert {step.partition(".")[0] for step in stages.ran} == {stage}


def test_from_a_stage_on_all_are_done_again(stages: FakeStages, world: Path) -> None:
    run()
    stages.ran = []

    again(from_stage="package")

    assert stages.ran == ["package.entry", "package.package", "publish.publish"]


def test_what_is_published_is_not_made_again_otherwise(stages: FakeStages, world: Path) -> None:
    run()
    stages.ran = []

    with pytest.raises(BadInput, match=r"published as version 1 of cats, which never changes"):
        again(from_stage="validate")
    again(from_stage="validate", until="validate")

    assert {step.partition(".")[0] for step in stages.ran} == {"validate"}


def test_what_is_packaged_again_keeps_its_version_where_it_is_free(stages: FakeStages, world: Path) -> None:
    run()

    assert again(from_stage="package").version == 1


def test_until_alone_stops_there(stages: FakeStages, world: Path) -> None:
    def stop(name: str) -> None:
        if name == "checkpoint.inspect":
            raise ExportError("Stopped.")

    stages.inside = stop
    with pytest.raises(ExportError, match="Stopped"):
        run()
    stages.inside = lambda _name: None

    result = again(until="export")

    assert list(result.seconds) == ["checkpoint", "export"]
    assert (result.package, result.published, result.certificate) == (None, None, None)


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        (
            {"from_stage": "publish"},
            "This job has no stage publish; it has checkpoint, export, validate, package",
        ),
        ({"until": "publish"}, "This job has no stage publish"),
        ({"from_stage": "package", "until": "export"}, "The stage export comes before package"),
    ],
)
def test_stages_that_make_no_sense(
    stages: FakeStages, world: Path, how: dict[str, Any], sentence: str
) -> None:
    run(publish=None)

    with pytest.raises(BadInput, match=sentence):
        again(**how)
    assert len(stages.ran) == 9


def test_there_is_nothing_to_resume_in_an_empty_folder(world: Path) -> None:
    with pytest.raises(BadInput, match=r"models holds no export job"):
        resume(Path("models"))
    assert list((world / "models").iterdir()) == []


def test_only_one_works_on_a_job_at_a_time(stages: FakeStages, world: Path) -> None:
    def interfere(_name: str) -> None:
        with pytest.raises(BadInput, match="Another process is working on"):
            again()

    stages.inside = interfere
    run()
