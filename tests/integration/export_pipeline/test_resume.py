"""A job that is killed at every boundary of its steps, and inside them, ends as an undisturbed one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from export_pipeline.job import JobFolder
from export_pipeline.pipeline import STAGES, steps_of
from export_pipeline.progress import Event
from tests.support.exports import (
    COMMAND,
    NAME,
    ROOT,
    Ended,
    FinishedExport,
    exporting,
    half_written,
    run_arguments,
    snapshot,
)
from tests.support.waiting import eventually

MEASURED = {"metadata.json", "validation.json", "README.md", "SHA256SUMS"}
"""Files of a package that hold what was measured, or a hash of such a file."""


@dataclass(frozen=True)
class Disturbed:
    job: JobFolder
    repository: Path
    killed_at: set[tuple[str, str]]
    runs: list[Ended]


@pytest.fixture(scope="module")
def disturbed(finished_export: FinishedExport, tmp_path_factory: pytest.TempPathFactory) -> Disturbed:
    """One job, started again and again with the same command, until nothing kills it any more."""
    folder = tmp_path_factory.mktemp("disturbed")
    repository = folder / "model_repo"
    repository.mkdir()
    job = JobFolder(folder / "job")
    killed_at: set[tuple[str, str]] = set()
    runs: list[Ended] = []
    arguments = run_arguments(job.path, repository, finished_export.pictures)
    while not runs or runs[-1].exit_code == -signal.SIGKILL:
        spared = ",".join(f"{step}/{kind}" for step, kind in sorted(killed_at))
        program = [sys.executable, "-m", "tests.support.killed_export", spared]
        with exporting(arguments, program=program, cwd=ROOT) as process:
            runs.append(process.until_end())
        _require_nothing_runs_on(job.path)
        _require_nothing_half_written(repository, job)
        if runs[-1].exit_code == -signal.SIGKILL:
            last = runs[-1].events[-1]
            killed_at.add((last.step, last.kind))
    return Disturbed(job, repository, killed_at, runs)


def _require_nothing_runs_on(job: Path) -> None:
    """The process was killed by itself, and what it had started must end without being told to."""

    def works_on_the_job(process: psutil.Process) -> bool:
        found = False
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            found = Path(process.cwd()).is_relative_to(job) or str(job) in " ".join(process.cmdline())
        return found

    assert eventually(lambda: not any(map(works_on_the_job, psutil.process_iter())))


def _require_nothing_half_written(repository: Path, job: JobFolder) -> None:
    """What readers of the repository can see is nothing, or all of it."""
    visible = [path.name for path in repository.iterdir() if not path.name.startswith(".")]
    assert visible in ([], [NAME])
    if visible:
        assert snapshot(repository / NAME) == snapshot(job.entry_root / NAME)


@pytest.mark.timeout(400)
def test_each_step_was_killed_where_it_begins_where_it_ends_and_at_work(disturbed: Disturbed) -> None:
    steps = steps_of(disturbed.job.record())

    for kind in ("began", "done"):
        assert {step for step, at in disturbed.killed_at if at == kind} == {step.name for step in steps}
    long = {step.name for step in steps if step.isolated} | {"validate.serve"}
    assert {step for step, at in disturbed.killed_at if at == "working"} >= long
    assert len(disturbed.runs) == len(disturbed.killed_at) + 1


def test_the_last_run_ends_well_and_leaves_no_draft(disturbed: Disturbed) -> None:
    last = disturbed.runs[-1]

    assert (last.exit_code, last.err) == (0, "")
    assert half_written(disturbed.job.path) == []
    assert half_written(disturbed.repository) == []
    assert list(disturbed.job.state().steps) == [step.name for step in steps_of(disturbed.job.record())]


def test_no_step_that_was_done_is_done_again(disturbed: Disturbed) -> None:
    done: set[str] = set()
    for run in disturbed.runs:
        assert done.isdisjoint(run.steps("began"))
        assert done <= set(run.steps("done_before"))
        done |= {*run.steps("done_before"), *run.steps("done")}


def test_what_was_made_is_what_an_undisturbed_job_makes(
    disturbed: Disturbed, finished_export: FinishedExport
) -> None:
    def unmeasured(root: Path) -> dict[str, str]:
        return {name: sha256 for name, sha256 in snapshot(root).items() if Path(name).name not in MEASURED}

    def contract(job: JobFolder) -> dict[str, Any]:
        whole = json.loads((job.package / "metadata.json").read_text())
        return {part: value for part, value in whole.items() if part not in {"performance", "validation"}}

    for part in ("package", "entry", "model"):
        assert unmeasured(disturbed.job.path / part) == unmeasured(finished_export.job.path / part)
    assert contract(disturbed.job) == contract(finished_export.job)
    assert "model.onnx" in unmeasured(disturbed.job.package)


@pytest.mark.timeout(200)
@pytest.mark.parametrize("stage", [*(stage for stage in STAGES if stage != "validate"), "validate"])
def test_the_recorded_command_does_its_stage_again_as_it_is_written(disturbed: Disturbed, stage: str) -> None:
    """validate comes last: what it measures is never twice the same, and undoes what follows."""
    before = disturbed.job.state().steps
    steps = [name for name, record in before.items() if record.stage == stage]
    (command,) = {before[name].command for name in steps}
    ended = subprocess.run(
        ["sh", "-c", f"{command} --progress json"],
        env={**os.environ, "PATH": f"{COMMAND.parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        cwd="/",
        timeout=150,
        check=False,
    )

    assert (ended.returncode, ended.stderr) == (0, "")
    events = [json.loads(line) for line in ended.stdout.splitlines()[:-1]]
    assert [event["step"] for event in events if event["kind"] == "done"] == steps
    after = disturbed.job.state().steps
    if stage != "validate":
        assert [after[name].sha256 for name in steps] == [before[name].sha256 for name in steps]
        assert set(after) == set(before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_isolated_process_too(
    finished_export: FinishedExport, tmp_path: Path, number: signal.Signals
) -> None:
    below: list[psutil.Process] = []
    with exporting(run_arguments(tmp_path / "job", None, finished_export.pictures)) as process:

        def stop(event: Event) -> None:
            if (event.step, event.kind) == ("checkpoint.inspect", "began"):
                below.extend(psutil.Process(process.pid).children(recursive=True))
                os.kill(process.pid, number)

        ended = process.until_end(stop)

    assert ended.exit_code == 130
    assert ended.err == "error: Cancelled; `visiongate-export resume` goes on where it stopped.\n"
    assert below
    assert eventually(lambda: not any(each.is_running() for each in below))
    assert half_written(tmp_path) == []
    assert list(JobFolder(tmp_path / "job").state().steps) == ["checkpoint.fetch"]
