from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from export_pipeline.errors import BadInput, ExportError
from export_pipeline.job import JobFolder, JobRecord, Stage
from export_pipeline.pipeline import pending, run_job, steps_of
from export_pipeline.progress import Event
from tests.support.export_stages import Events, FakeStages, HereExecutor, new_job, request

STEPS = [
    "checkpoint.fetch",
    "checkpoint.inspect",
    "export.graph",
    "validate.pictures",
    "validate.measure",
    "validate.serve",
    "validate.judge",
    "package.entry",
    "package.package",
    "publish.publish",
]


class Killed(BaseException):
    pass


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> FakeStages:
    return FakeStages(monkeypatch)


@pytest.fixture
def job(tmp_path: Path) -> JobFolder:
    return new_job(tmp_path / "job")


def names(folder: JobFolder) -> list[str]:
    return [step.name for step in pending(folder, steps_of(folder.record()))]


def results(folder: JobFolder) -> dict[str, bytes]:
    """All that a job has made, but for how long it took."""
    return {
        str(path.relative_to(folder.path)): path.read_bytes()
        for path in sorted(folder.path.rglob("*"))
        if path.is_file() and path.name not in {"state.json", ".lock"}
    }


@pytest.mark.parametrize(
    ("changed", "missing"),
    [
        ({}, set()),
        ({"publish": None}, {"publish.publish"}),
        (
            {"publish": None, "validation_config": {"enabled": False}},
            {"publish.publish", *(step for step in STEPS if step.startswith("validate."))},
        ),
    ],
)
def test_a_job_has_the_steps_that_it_asks_for(changed: dict[str, object], missing: set[str]) -> None:
    record = JobRecord(job_id="1", version=3, request=request(**changed))

    assert [step.name for step in steps_of(record)] == [step for step in STEPS if step not in missing]
    assert "cats-3.zip" in next(step for step in steps_of(record) if step.name == "package.package").results


def test_steps_run_in_order_and_isolated_ones_together(stages: FakeStages, job: JobFolder) -> None:
    executor, events = HereExecutor(), Events()

    run_job(job, executor, events)

    assert stages.ran == STEPS
    assert executor.groups == [
        ["checkpoint.inspect", "export.graph", "validate.pictures", "validate.measure"]
    ]
    assert [(event.step, event.kind) for event in events.seen] == [
        (step, kind) for step in STEPS for kind in ("began", "working", "done")
    ]


def test_each_step_leaves_its_record(stages: FakeStages, job: JobFolder) -> None:
    run_job(job, HereExecutor(), Events())

    records = job.state().steps
    assert list(records) == STEPS
    assert records["export.graph"].sha256 == job.digest(["model"])
    assert records["export.graph"].command == (
        f"visiongate-export resume {job.path} --from export --until export"
    )
    assert all(record.seconds >= 0 for record in records.values())


def test_a_finished_job_does_nothing_again(stages: FakeStages, job: JobFolder) -> None:
    run_job(job, HereExecutor(), Events())
    before, stages.ran = results(job), []
    executor, events = HereExecutor(), Events()

    run_job(job, executor, events)

    assert (stages.ran, executor.groups, results(job)) == ([], [], before)
    assert events.of_kind("done_before") == STEPS
    assert len(events.seen) == len(STEPS)


def _at_event(step: str, kind: str) -> Callable[[Event], None]:
    def kill(event: Event) -> None:
        if (event.step, event.kind) == (step, kind):
            raise Killed

    return kill


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("moment", ["began", "inside", "working", "done"])
def test_killed_anywhere_it_goes_on_from_there(
    stages: FakeStages, tmp_path: Path, step: str, moment: str
) -> None:
    undisturbed = new_job(tmp_path / "undisturbed")
    run_job(undisturbed, HereExecutor(), Events())
    job, stages.ran = new_job(tmp_path / "job"), []

    def kill(name: str) -> None:
        if (name, moment) == (step, "inside"):
            raise Killed

    stages.inside = kill
    with pytest.raises(Killed):
        run_job(job, HereExecutor(), Events(_at_event(step, moment)))
    finished = STEPS.index(step) + (moment == "done")
    assert names(job) == STEPS[finished:]

    stages.inside, stages.ran = lambda _name: None, []
    run_job(job, HereExecutor(), Events())

    assert stages.ran == STEPS[finished:]
    assert results(job) == results(undisturbed)


def test_what_a_kill_left_half_written_is_cleared_away(stages: FakeStages, job: JobFolder) -> None:
    for name in (".model.draft", "measurements/.local.draft"):
        (job.path / name).mkdir(parents=True)
        (job.path / name / "half").write_text("half")
    (job.path / ".state.json.draft").write_text("{")

    run_job(job, HereExecutor(), Events())

    assert [path for path in job.path.rglob(".*") if path.name.endswith(".draft")] == []


@pytest.mark.parametrize("stage", ["checkpoint", "validate", "publish"])
def test_until_stops_after_a_stage(stages: FakeStages, job: JobFolder, stage: Stage) -> None:
    run_job(job, HereExecutor(), Events(), until=stage)

    last = max(index for index, step in enumerate(STEPS) if step.startswith(stage))
    assert stages.ran == STEPS[: last + 1]


@pytest.mark.parametrize(
    ("result", "first_again"),
    [
        ("checkpoint/first", "checkpoint.fetch"),
        ("model/second", "export.graph"),
        ("cats-1.zip", "package.package"),
    ],
)
@pytest.mark.parametrize("how", ["changed", "gone"])
def test_results_that_are_not_as_they_were_are_made_again(
    stages: FakeStages, job: JobFolder, result: str, first_again: str, how: str
) -> None:
    run_job(job, HereExecutor(), Events())
    before, stages.ran = results(job), []
    if how == "changed":
        (job.path / result).write_text("tampered with")
    else:
        (job.path / result).unlink()

    run_job(job, HereExecutor(), Events())

    assert stages.ran == STEPS[STEPS.index(first_again) :]
    assert results(job) == before


def test_a_stage_done_again_alike_leaves_the_later_ones_done(stages: FakeStages, job: JobFolder) -> None:
    run_job(job, HereExecutor(), Events())
    job.forget_steps(["export.graph"])
    run_job(job, HereExecutor(), Events(), until="export")

    assert names(job) == []


def test_a_stage_done_again_otherwise_undoes_the_later_ones(stages: FakeStages, job: JobFolder) -> None:
    run_job(job, HereExecutor(), Events())
    job.forget_steps(["export.graph"])
    stages.salt["export.graph"] = "of another graph"
    run_job(job, HereExecutor(), Events(), until="export")

    assert names(job) == STEPS[3:]


def test_a_step_that_leaves_nothing_is_an_error(stages: FakeStages, job: JobFolder) -> None:
    class Idle:
        unconfined = False

        def run(self, *_: object) -> None:
            pass

    with pytest.raises(ExportError, match=r"^validate\.measure ended without leaving what it should\.$"):
        run_job(job, Idle(), Events())
    assert names(job) == STEPS[1:]


def test_a_process_that_rewrites_the_request_is_found_out(stages: FakeStages, job: JobFolder) -> None:
    def rewrite(name: str) -> None:
        if name == "export.graph":
            other = request(publish="/etc")
            job.write("job.json", job.record().model_copy(update={"request": other}).to_json())

    stages.inside = rewrite

    with pytest.raises(ExportError, match="ended without leaving"):
        run_job(job, HereExecutor(), Events())
    assert "validate.serve" not in stages.ran


@pytest.mark.parametrize("again", [False, True], ids=["at once", "after a kill"])
def test_a_process_that_leaves_a_link_is_found_out(
    stages: FakeStages, job: JobFolder, tmp_path: Path, again: bool
) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    if again:
        (job.path / "validation.json").symlink_to(precious)
    else:
        stages.inside = lambda name: (
            (job.path / "validation.json").symlink_to(precious) if name == "export.graph" else None
        )

    with pytest.raises(ExportError, match=r"validation\.json is neither a file nor a folder"):
        run_job(job, HereExecutor(), Events())
    assert precious.read_text() == "precious"
    assert "validate.judge" not in stages.ran


def test_errors_with_a_sentence_pass_unchanged(stages: FakeStages, job: JobFolder) -> None:
    def refuse(name: str) -> None:
        raise BadInput(f"{name} will not do.")

    stages.inside = refuse

    with pytest.raises(BadInput, match=r"^checkpoint\.fetch will not do\.$"):
        run_job(job, HereExecutor(), Events())
    assert not job.log_file.exists()


def test_what_nobody_foresaw_is_a_sentence_and_a_stack_trace_in_the_log(
    stages: FakeStages, job: JobFolder
) -> None:
    def stumble(_name: str) -> None:
        raise ZeroDivisionError("by nothing\nat all")

    stages.inside = stumble

    with pytest.raises(ExportError) as caught:
        run_job(job, HereExecutor(), Events())

    assert str(caught.value) == (
        f"checkpoint.fetch failed: ZeroDivisionError: by nothing. The log says more: {job.log_file}"
    )
    assert "in stumble" in job.log_file.read_text()


def test_what_goes_wrong_when_a_step_is_saved_is_told_too(
    stages: FakeStages, job: JobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stumble(*_: object) -> None:
        raise UnicodeError("no text")

    monkeypatch.setattr(JobFolder, "save_step", stumble)

    with pytest.raises(ExportError, match=r"^checkpoint\.fetch failed: UnicodeError: no text\."):
        run_job(job, HereExecutor(), Events())


def test_commands_of_a_job_that_ran_unconfined_say_so(stages: FakeStages, job: JobFolder) -> None:
    run_job(job, HereExecutor(unconfined=True), Events())

    commands = {record.command for record in job.state().steps.values() if record.stage == "validate"}
    assert commands == {f"visiongate-export resume {job.path} --from validate --until validate --unconfined"}
