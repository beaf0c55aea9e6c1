"""Real confined processes: how they end, what is taken over, and that nothing of them stays."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from export_pipeline.confinement import MAX_FILE_BYTES, landlock
from export_pipeline.errors import (
    BadInput,
    Cancelled,
    ExportError,
    LimitExceeded,
    Unsupported,
    ValidationFailed,
)
from export_pipeline.executors.output import MAX_LOG_BYTES
from export_pipeline.pipeline import pending, steps_of
from export_pipeline.request import GIBIBYTE
from tests.integration.export_pipeline.conftest import EXPORT, INSPECT, HostileJob, NewJob
from tests.support.waiting import eventually

GOLDEN = Path(__file__).parents[3] / "golden" / "pictures"
MEBIBYTE = 1024**2


def leftovers(job: HostileJob) -> list[str]:
    """Processes that work in the job's folder, and what they have left there half-done."""
    path = str(job.folder.path)
    processes = [
        str(each.info) for each in psutil.process_iter(["pid", "cwd"]) if path in str(each.info["cwd"])
    ]
    return processes + [each.name for each in job.folder.path.iterdir() if each.name.startswith(".")]


def test_steps_leave_their_results_and_are_saved(new_job: NewJob) -> None:
    job = new_job()

    job.run([INSPECT, EXPORT])

    assert (job.folder.path / "checkpoint.json").read_text() == '"done"'
    assert (job.folder.path / "model" / "model.onnx").read_text() == '"done"'
    assert [(event.step, event.kind) for event in job.events] == [
        (step, kind) for step in (INSPECT, EXPORT) for kind in ("began", "working", "done")
    ]
    assert pending(job.folder, steps_of(job.record))[0].name == "validate.pictures"
    assert f"resume {job.folder.path} --from export" in job.folder.state().steps[EXPORT].command
    assert leftovers(job) == []


def test_it_goes_on_from_the_results_of_steps_before(new_job: NewJob) -> None:
    job = new_job()
    job.run([INSPECT])

    job.run([EXPORT], unconfined=True)

    assert job.folder.state().steps[EXPORT].command.endswith(" --until export --unconfined")
    assert pending(job.folder, steps_of(job.record))[0].name == "validate.pictures"


def test_honest_work_finds_what_it_needs_and_nothing_of_ours(
    new_job: NewJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "VISIONGATE_ADMIN_TOKEN", "PYTHONPATH", "LD_PRELOAD"):
        monkeypatch.setenv(name, "")
    job = new_job("work_honestly", {"pictures": str(GOLDEN)})
    validation = job.record.request.validation_config.model_copy(update={"pictures": GOLDEN})
    request = job.record.request.model_copy(update={"validation_config": validation})
    job.record = job.record.model_copy(update={"request": request})

    job.run()

    found = job.result()
    environment = found.pop("environment")
    assert found == {
        "threads": ["thread", "POOL"],
        "pictures": sorted(path.name for path in GOLDEN.iterdir()),
        "cores": os.cpu_count(),
        "random": 8,
        "limits": [0, MAX_FILE_BYTES],
        "own_entry": True,
    }
    assert set(environment) - {"LC_CTYPE"} == {
        *("JOB_ID", "EXPORT_FORMAT", "FRAMEWORK", "CHECKPOINT_PATH", "MODEL_NAME", "MODEL_VERSION"),
        *("EXPORT_CONFIG", "OPTIMIZATION_CONFIG", "VALIDATION_CONFIG", "MEMORY_LIMIT_BYTES"),
        *("PATH", "LANG", "USER", "HOME", "TMPDIR", "YOLO_CONFIG_DIR", "YOLO_AUTOINSTALL"),
        "ORT_DISABLE_TELEMETRY",
        *("PIP_REQUIRE_VIRTUALENV", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES"),
    }


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("BadInput", BadInput),
        ("Unsupported", Unsupported),
        ("ValidationFailed", ValidationFailed),
        ("ExportError", ExportError),
    ],
)
def test_an_error_inside_is_the_same_error_here(
    error: str, expected: type[ExportError], new_job: NewJob
) -> None:
    job = new_job("fail_with", {"error": error})

    with pytest.raises(ExportError, match=f"what {error} says") as caught:
        job.run()

    assert type(caught.value) is expected
    assert leftovers(job) == []


@pytest.mark.parametrize(
    ("deed", "arguments", "sentence"),
    [
        ("exit_with", {"code": 0}, "ended before its steps were done"),
        ("exit_with", {"code": 7}, "ended with status 7"),
        ("crash", {}, r"killed by signal 11 \(Segmentation fault\)\. It said last:\n(.*\n)*about to crash"),
        ("kill_itself", {}, r"killed by signal 9 \(Killed\)"),
        ("interrupt_itself", {}, "Cancelled"),
        ("say_an_endless_line", {}, "an endless line"),
        ("say", {"line": "no event"}, "something else where its events belong"),
        ("say", {"line": "[" * 60_000}, "something else where its events belong"),
        ("say", {"line": '{"step": "publish.publish", "kind": "done"}'}, "not asked for"),
        ("say", {"line": '{"step": "checkpoint.inspect", "kind": "done"}'}, "did not leave checkpoint.json"),
    ],
)
@pytest.mark.parametrize("unconfined", [False, True])
def test_a_bad_end_is_told(
    deed: str, arguments: dict[str, object], sentence: str, unconfined: bool, new_job: NewJob
) -> None:
    job = new_job(deed, arguments)

    with pytest.raises(ExportError, match=sentence):
        job.run(unconfined=unconfined)

    assert leftovers(job) == []


@pytest.mark.parametrize("deed", ["fill_memory", "fill_shared_memory", "want_too_much_at_once"])
def test_too_much_memory_ends_it(deed: str, new_job: NewJob) -> None:
    job = new_job(deed, memory_bytes=GIBIBYTE // 2)

    with pytest.raises(LimitExceeded, match=r"more memory than its limit of 0\.5 GiB"):
        job.run()

    assert leftovers(job) == []


def test_too_much_time_ends_it(new_job: NewJob) -> None:
    job = new_job("run_for_ever", time_seconds=1.5)

    with pytest.raises(LimitExceeded, match=r"longer than its limit of 1\.5 s"):
        job.run()

    assert leftovers(job) == []


def test_the_disk_is_not_filled(new_job: NewJob) -> None:
    job = new_job("write_an_endless_file")
    reserve = shutil.disk_usage(job.folder.path).free - 512 * MEBIBYTE

    with pytest.raises(LimitExceeded, match="GiB is left on its disk"):
        job.run(disk_reserve_bytes=reserve)

    assert leftovers(job) == []


def test_the_log_has_an_end_and_no_escapes(new_job: NewJob) -> None:
    job = new_job("fill_the_log", {"megabytes": 40})

    job.run()

    assert job.folder.log_file.stat().st_size == MAX_LOG_BYTES


def test_a_result_that_is_changed_later_is_not_done(new_job: NewJob) -> None:
    job = new_job(export_graph=["change_the_result_before", {}])

    job.run([INSPECT, EXPORT])

    assert pending(job.folder, steps_of(job.record))[0].name == INSPECT


def test_a_link_is_no_result(new_job: NewJob) -> None:
    job = new_job(export_graph=["leave_a_link", {}])

    with pytest.raises(ExportError, match=r"left model\.json, which is neither a file nor a folder"):
        job.run([INSPECT, EXPORT], unconfined=True)

    assert not job.folder.model_folder.exists()


def test_folders_deeper_than_python_recurses_are_refused_and_cleared_away(new_job: NewJob) -> None:
    job = new_job(export_graph=["leave_deep_folders", {}])

    with pytest.raises(ExportError, match="deeper folders, than it may"):
        job.run([INSPECT, EXPORT])

    assert not job.folder.model_folder.exists()
    assert leftovers(job) == []


def test_a_machine_that_cannot_confine_is_refused(new_job: NewJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "abi", lambda: 0)
    job = new_job()

    with pytest.raises(ExportError, match="This machine cannot confine"):
        job.run()
    assert job.events == []

    job.run(unconfined=True)
    assert job.result() == "done"


CALLER = """
import sys
from pathlib import Path
from export_pipeline.errors import ExportError
from export_pipeline.executors.local_process import LocalProcess
from export_pipeline.job import JobFolder

folder, unconfined = JobFolder(Path(sys.argv[1])), sys.argv[3] == "unconfined"
executor = LocalProcess(Path(sys.argv[2]), unconfined=unconfined, disk_reserve_bytes=0)
try:
    executor.run(folder, folder.record(), ["checkpoint.inspect"], lambda event: print(event.kind, flush=True))
except ExportError as exc:
    print(exc, file=sys.stderr)
    sys.exit(exc.exit_code)
"""


@contextmanager
def calling(job: HostileJob, how: str) -> Iterator[subprocess.Popen[bytes]]:
    """A caller whose step is in the middle of its deed, or about to be."""
    argv = [sys.executable, "-c", CALLER, str(job.folder.path), str(job.python), how]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as caller:
        try:
            assert caller.stdout is not None
            assert [caller.stdout.readline() for _ in range(2)] == [b"began\n", b"working\n"]
            yield caller
        finally:
            caller.kill()


def all_gone(processes: list[psutil.Process]) -> bool:
    return psutil.wait_procs(processes, timeout=10.0)[1] == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, Cancelled.exit_code), (signal.SIGKILL, -9)])
def test_nothing_outlives_its_caller(
    number: signal.Signals, status: int, new_job: NewJob, tmp_path: Path
) -> None:
    pid_files = {name: str(tmp_path / name) for name in ("daemon_pid_file", "own_pid_file")}
    job = new_job("leave_a_daemon_and_run_for_ever", dict(pid_files))
    with calling(job, "unconfined") as caller:
        written = Path(pid_files["own_pid_file"])
        assert eventually(lambda: written.exists() and written.read_text() != "")
        below = psutil.Process(caller.pid).children(recursive=True)
        assert {int(Path(file).read_text()) for file in pid_files.values()} < {each.pid for each in below}

        caller.send_signal(number)

        assert caller.wait(20) == status
        assert all_gone(below)
    job.folder.tidy()
    assert leftovers(job) == []


def test_the_process_ends_with_its_guard(new_job: NewJob) -> None:
    job = new_job("run_for_ever")
    with calling(job, "confined") as caller:
        below = psutil.Process(caller.pid).children(recursive=True)
        assert len(below) == 2

        psutil.Process(caller.pid).children()[0].kill()

        assert caller.wait(20) == ExportError.exit_code
        assert all_gone(below)
    assert leftovers(job) == []
