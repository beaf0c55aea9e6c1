"""`visiongate try`: a gateway of one's own, spoken to in lines, and gone without a trace."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import psutil
import pytest

from export_pipeline.certificate.gateway_path import STOP_SECONDS
from serving.cli.try_models import AT_A_TIME
from tests.support.repositories import copy_entry
from tests.support.stack import COMMAND, ROOT
from tests.support.waiting import eventually

PICTURES = ROOT / "tests" / "golden" / "pictures"
SAMPLE = ROOT / "model_repo" / "shapes" / "sample.jpg"
SETTINGS_OF_ANOTHER = {"VISIONGATE_PORT": "none", "VISIONGATE_MAX_PICTURE_PIXELS": "1"}
"""They are of a gateway that may run here as well; this one looks at none of them."""

pytestmark = pytest.mark.timeout(180)


def question(number: int, picture: Path = SAMPLE, **changed: Any) -> str:
    return json.dumps({"id": str(number), "model": "shapes", "picture": str(picture), **changed}) + "\n"


@contextmanager
def trying(
    repository: Path, folder: Path, stdin: int | IO[Any] = subprocess.PIPE
) -> Iterator[subprocess.Popen[str]]:
    """In a session of its own, with `folder` for whatever it keeps while it runs."""
    with subprocess.Popen(
        [COMMAND, "try", repository],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **SETTINGS_OF_ANOTHER, "TMPDIR": str(folder)},
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def line(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def established(process: subprocess.Popen[str]) -> int:
    connections = psutil.Process(process.pid).net_connections("inet")
    return sum(connection.status == psutil.CONN_ESTABLISHED for connection in connections)


def left_in(folder: Path) -> list[Path]:
    """But for the lock, which keeps one run from removing another's folder while it is being made."""
    return [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]


def test_it_answers_line_by_line_what_the_gateway_answers(tmp_path: Path) -> None:
    golden = json.loads((ROOT / "tests" / "golden" / "predictions.json").read_text())["pictures"]
    pictures = sorted(path for path in PICTURES.iterdir() if path.name != "large.jpg")
    repository = tmp_path / "models"
    shutil.copytree(ROOT / "model_repo", repository)
    shutil.copytree(repository / "shapes", repository / "masks")
    temporary = tmp_path / "tmp"
    temporary.mkdir()

    with trying(repository, temporary) as process:
        assert process.stdin is not None
        introduction = line(process)
        # Each is answered before the next is asked: nothing waits for more lines.
        process.stdin.write(question(0))
        process.stdin.flush()
        first = line(process)
        process.stdin.writelines(question(index, picture) for index, picture in enumerate(pictures, 1))
        process.stdin.write(question(90, tmp_path / "absent.png"))
        process.stdin.write(question(91, tmp_path / "picture.tiff"))
        process.stdin.write(question(92, model="nobody"))
        process.stdin.write(question(93, options={"confidence_threshold": 0.999}))
        process.stdin.close()
        answers = [line(process) for _ in range(len(pictures) + 4)]
        running = family(process)
        assert process.wait(60) == 0

    assert introduction["models"]["shapes"] == {"served": True}
    assert introduction["models"]["masks"]["served"] is False
    assert "'shapes'" in introduction["models"]["masks"]["reason"]
    assert (first["id"], first["status"]) == ("0", 200)
    assert [answer["id"] for answer in answers] == [
        *(str(index) for index in range(1, len(pictures) + 1)),
        *("90", "91", "92", "93"),
    ]
    for picture, answer in zip(pictures, answers, strict=False):
        expected = golden[picture.name]["predictions"]
        found = answer["answer"]["predictions"]
        assert [each["class"] for each in found] == [each["class"] for each in expected]
    absent, unknown_kind, nobody, nothing = answers[-4:]
    assert (absent["status"], absent["answer"]["detail"]) == (0, "absent.png: No such file or directory")
    assert unknown_kind["status"] == 0
    assert (nobody["status"], nobody["answer"]["code"]) == (404, "model_not_found")
    assert (nothing["status"], nothing["answer"]["predictions"]) == (200, [])
    assert not left_in(temporary)
    assert not [child for child in running if child.is_running()]


def test_a_model_that_triton_cannot_load_does_not_cost_the_others(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    shutil.copytree(ROOT / "model_repo", repository)
    copy_entry(repository / "shapes", repository / "broken", model=b"no model")
    copy_entry(repository / "shapes", repository / "halved")
    (repository / "halved" / "1" / "model.onnx").write_bytes(b"half")

    with trying(repository, tmp_path) as process:
        out, _ = process.communicate(question(1) + question(2, model="broken"), timeout=90)

    assert process.returncode == 0
    introduction, shapes, broken = (json.loads(each) for each in out.splitlines())
    assert introduction["models"]["shapes"] == {"served": True}
    assert introduction["models"]["broken"]["served"] is False
    assert introduction["models"]["broken"]["loadable"] is False
    assert "model.onnx" in introduction["models"]["broken"]["reason"]
    assert introduction["models"]["halved"]["served"] is False
    assert introduction["models"]["halved"]["loadable"] is True
    assert (shapes["status"], broken["status"]) == (200, 503)


def test_a_line_that_is_no_question_ends_it(tmp_path: Path) -> None:
    with trying(ROOT / "model_repo", tmp_path) as process:
        out, err = process.communicate(question(1) + '{"id": 2}\n' + question(3), timeout=90)

    assert process.returncode == 2
    assert "This line is no question" in err
    assert "Traceback" not in err
    assert [json.loads(each).get("id") for each in out.splitlines()] == [None, "1"]


def test_questions_that_cannot_be_read_end_it(tmp_path: Path) -> None:
    with (
        (tmp_path / "only to be written").open("w") as file,
        trying(ROOT / "model_repo", tmp_path, stdin=file) as process,
    ):
        _, err = process.communicate(timeout=90)

    assert process.returncode == 2
    assert "The questions cannot be read: " in err
    assert "Traceback" not in err


def test_triton_is_the_one_that_the_environment_names(tmp_path: Path) -> None:
    absent = tmp_path / "tritonserver"
    ended = subprocess.run(
        [COMMAND, "try", ROOT / "model_repo"],
        env={**os.environ, "VISIONGATE_TRITON_EXECUTABLE": str(absent)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert ended.returncode == 2
    assert str(absent) in ended.stderr.replace("\n", "")


def test_without_a_standard_input_it_does_not_begin() -> None:
    command = f"exec {COMMAND} try {ROOT / 'model_repo'} <&-"
    ended = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False)

    assert ended.returncode == 2
    assert "stdin" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_it_ends_in_time_while_triton_does_not_answer(tmp_path: Path) -> None:
    with trying(ROOT / "model_repo", tmp_path) as process:
        assert process.stdin is not None
        assert line(process)["ready"]
        running = family(process)
        (triton,) = [child for child in running if child.name() == "tritonserver"]
        before = established(process)
        triton.suspend()
        process.stdin.writelines(question(number) for number in range(20))
        process.stdin.flush()
        assert eventually(lambda: established(process) == before + 2 * AT_A_TIME)  # it is at both their ends
        process.send_signal(signal.SIGTERM)
        process.wait(STOP_SECONDS)  # after which the exporter would kill it

    assert process.returncode == 130
    assert not [child for child in running if child.is_running()]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_however_it_ends_nothing_runs_on(tmp_path: Path, number: signal.Signals) -> None:
    with trying(ROOT / "model_repo", tmp_path) as process:
        assert line(process)["ready"]
        running = family(process)
        assert any("tritonserver" in child.name() for child in running)
        process.send_signal(number)
        process.wait(60)
        assert eventually(lambda: not any(child.is_running() for child in running))

    if number != signal.SIGKILL:
        assert not left_in(tmp_path)
