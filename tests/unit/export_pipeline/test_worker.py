"""The isolated process's way in: its environment, its two outputs and its exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from export_pipeline.errors import BadInput, Unsupported
from export_pipeline.executors.local_process import worker_environment
from export_pipeline.job import JobRecord
from export_pipeline.request import read_request
from export_pipeline.worker import record_from

RECORD = JobRecord(
    job_id="4711",
    version=3,
    request=read_request(
        {
            "checkpoint": "s3://bucket/best.pt",
            "name": "cats",
            "export_config": {"imgsz": 320, "embed_nms": True},
            "validation_config": {"dataset": "/data/cats.yaml", "max_pictures": 7},
        }
    ),
)
ENVIRONMENT = worker_environment(Path("/env/bin/python"), Path("/job/own"), RECORD)


def test_what_the_executor_tells_is_what_the_worker_understands() -> None:
    assert record_from(ENVIRONMENT) == RECORD


def test_what_may_be_absent_has_defaults() -> None:
    told = {name: value for name, value in ENVIRONMENT.items() if not name.endswith("_CONFIG")}

    assert record_from(told).request == read_request({"checkpoint": "s3://bucket/best.pt", "name": "cats"})


@pytest.mark.parametrize(
    ("changed", "error", "sentence"),
    [
        ({"CHECKPOINT_PATH": None}, BadInput, "CHECKPOINT_PATH is missing"),
        ({"JOB_ID": None}, BadInput, "JOB_ID is missing"),
        ({"MODEL_VERSION": "one"}, BadInput, "MODEL_VERSION is not a number: 'one'"),
        ({"EXPORT_CONFIG": "{"}, BadInput, "EXPORT_CONFIG is not JSON"),
        ({"EXPORT_CONFIG": "[]"}, BadInput, "export_config"),
        ({"EXPORT_CONFIG": '{"opset_version": 3}'}, BadInput, "export_config.opset_version"),
        ({"EXPORT_FORMAT": "coreml"}, Unsupported, "coreml"),
        ({"OPTIMIZATION_CONFIG": '{"pruning": {}}'}, Unsupported, "pruning"),
    ],
)
def test_what_does_not_fit_is_named(
    changed: dict[str, str | None], error: type[Exception], sentence: str
) -> None:
    told = {name: value for name, value in (ENVIRONMENT | changed).items() if value is not None}

    with pytest.raises(error, match=sentence):
        record_from(told)


def start(tmp_path: Path, *arguments: str, **changed: str) -> tuple[int, list[dict[str, Any]], str]:
    """Exit status, the JSON lines of stdout, and stderr of a real worker."""
    own = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
    ended = subprocess.run(
        [sys.executable, "-B", "-m", "export_pipeline.worker", *arguments],
        cwd=tmp_path,
        env={**ENVIRONMENT, **own, "HOME": str(tmp_path), "TMPDIR": str(tmp_path), **changed},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return ended.returncode, [json.loads(line) for line in ended.stdout.splitlines()], ended.stderr


@pytest.mark.parametrize(
    ("arguments", "changed", "status", "sentence"),
    [
        (["no.step"], {}, 2, "There is no such step: no.step."),
        ([], {}, 2, "There is no such step: none is named."),
        (["checkpoint.fetch"], {"EXPORT_FORMAT": "tflite"}, 3, "There is no exporter for tflite yet"),
        (["checkpoint.fetch"], {"CALLBACK_URL": "ftp://host/"}, 2, "CALLBACK_URL has to begin with http"),
        (["checkpoint.fetch"], {"CHECKPOINT_PATH": "/missing.pt"}, 2, "/missing.pt"),
    ],
)
def test_its_last_line_says_why_it_failed(
    arguments: list[str], changed: dict[str, str], status: int, sentence: str, tmp_path: Path
) -> None:
    code, lines, _ = start(tmp_path, "--unconfined", *arguments, **changed)

    assert code == status
    assert sentence in lines[-1]["error"]


def test_a_long_or_wild_sentence_fits_into_a_line(tmp_path: Path) -> None:
    step = "\U0001f600\udcff" + "x" * 70_000

    code, lines, _ = start(tmp_path, "--unconfined", step)

    assert code == 2
    assert lines[-1]["error"].startswith("There is no such step: \U0001f600 xxx")
    assert len(lines[-1]["error"]) == 2000


def test_a_step_of_any_place_may_run_in_it(tmp_path: Path) -> None:
    checkpoint = tmp_path / "best.pt"
    checkpoint.write_bytes(b"weights")
    (tmp_path / "job").mkdir()

    code, lines, _ = start(
        tmp_path / "job", "--unconfined", "checkpoint.fetch", CHECKPOINT_PATH=str(checkpoint)
    )

    assert code == 0
    assert {line["step"] for line in lines} == {"checkpoint.fetch"}
    assert lines[-1]["kind"] == "done"
    assert (tmp_path / "job" / "checkpoint" / "best.pt").read_bytes() == b"weights"
