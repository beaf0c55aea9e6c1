from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export_pipeline.certificate import gateway_path
from export_pipeline.certificate.gateway_path import Answer, Question, gateway_trial
from export_pipeline.errors import ExportError

READY = 'say({"ready": True, "models": {"shapes": {"served": True}}, "versions": {"triton": "2.51.0"}})'
ECHO = """
for line in sys.stdin:
    asked = json.loads(line)
    say({"id": asked["id"], "status": 200, "answer": asked})
"""

Stub = Callable[[str], Path]


@pytest.fixture
def stub(tmp_path: Path) -> Stub:
    """A command that speaks the trial's protocol, or breaks it."""

    def write(body: str) -> Path:
        command = tmp_path / "visiongate"
        lines = (
            f"#!{sys.executable} -S",
            "import json, os, signal, subprocess, sys, time",
            "def say(line): print(json.dumps(line), flush=True)",
            body,
        )
        command.write_text("\n".join(lines))
        command.chmod(command.stat().st_mode | stat.S_IXUSR)
        return command

    return write


def questions(count: int) -> list[Question]:
    return [Question("shapes", Path(f"/{index}.png"), {"max_detections": index}) for index in range(count)]


def test_without_questions_there_are_no_answers(stub: Stub, tmp_path: Path) -> None:
    with gateway_trial(tmp_path, stub(READY + ECHO)) as trial:
        assert list(trial.ask([])) == []
        assert trial.models["shapes"].served
        assert trial.versions == {"triton": "2.51.0"}


def test_every_question_is_answered_in_order_and_more_can_be_asked(stub: Stub, tmp_path: Path) -> None:
    with gateway_trial(tmp_path, stub(READY + ECHO)) as trial:
        for count in (3, 1):
            answers = list(trial.ask(questions(count)))

            assert [answer.answer["picture"] for answer in answers] == [f"/{i}.png" for i in range(count)]
            assert answers[-1].answer["options"] == {"max_detections": count - 1}


def test_more_than_pipes_hold_goes_to_and_fro(stub: Stub, tmp_path: Path) -> None:
    """Answers that nobody took while questions were sent would block both sides for good."""
    long = [Question("shapes", Path("/" + "x" * 4000), {})] * 300

    with gateway_trial(tmp_path, stub(READY + ECHO)) as trial:
        assert sum(1 for _ in trial.ask(long)) == 300


def test_the_repository_is_tried_with_nothing_of_our_environment_that_is_secret(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("VISIONGATE_ADMIN_TOKEN", "secret")
    monkeypatch.setenv("VISIONGATE_TRITON_EXECUTABLE", "/opt/tritonserver")
    body = (
        READY
        + '\nsys.stdin.readline()\nseen = {"argv": sys.argv[1:], "env": dict(os.environ)}'
        + '\nsay({"id": "0", "status": 200, "answer": seen})'
    )

    with gateway_trial(tmp_path, stub(body)) as trial:
        (answer,) = trial.ask(questions(1))

    assert answer.answer["argv"] == ["try", str(tmp_path)]
    assert "secret" not in answer.answer["env"].values()
    assert answer.answer["env"]["PATH"] == os.environ["PATH"]
    assert answer.answer["env"]["VISIONGATE_TRITON_EXECUTABLE"] == "/opt/tritonserver"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("", "The gateway's trial ended too early."),
        ('sys.exit("no Triton here")', "no Triton here"),
        ("print('Traceback', flush=True)", "which is no answer"),
        ("say({'ready': True})", "which is no answer"),
        (READY, "The gateway's trial ended too early."),
        (
            READY + '\nsay({"id": "7", "status": 200, "answer": {}})\ntime.sleep(60)',
            "answered '7' where 0 was due",
        ),
        (READY + "\ntime.sleep(60)", "did not answer in time"),
        (READY + "\nprint('x' * 5_000_000, end='', flush=True)\ntime.sleep(60)", "a line without an end"),
    ],
)
def test_a_trial_that_breaks_off_is_an_error_that_says_how(
    body: str, said: str, stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_path, "ANSWER_SECONDS", 1.5)
    monkeypatch.setattr(gateway_path, "STOP_SECONDS", 0.2)

    with pytest.raises(ExportError, match=said), gateway_trial(tmp_path, stub(body)) as trial:
        list(trial.ask(questions(1)))


def test_a_command_that_is_not_there_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(ExportError, match="visiongate is missing"),
        gateway_trial(tmp_path, tmp_path / "visiongate"),
    ):
        pass


@pytest.mark.parametrize("stubborn", [False, True])
def test_nothing_of_it_runs_on_afterwards(
    stubborn: bool, stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the command, deaf to its input's end and to SIGTERM as it may be, and not what it has started."""
    monkeypatch.setattr(gateway_path, "STOP_SECONDS", 0.3)
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" if stubborn else ""
    child = 'child = subprocess.Popen(["sleep", "300"])\n'
    pids = (
        'sys.stdin.readline()\nseen = {"pids": [os.getpid(), child.pid]}\n'
        'say({"id": "0", "status": 200, "answer": seen})\n'
    )
    wait = "time.sleep(300)" if stubborn else "sys.stdin.read()"

    with gateway_trial(tmp_path, stub(deaf + child + READY + "\n" + pids + wait)) as trial:
        (answer,) = trial.ask(questions(1))

    assert [pid for pid in answer.answer["pids"] if is_running(pid)] == []


def is_running(pid: int) -> bool:
    """Killed processes take a moment until they are gone; who adopts them reaps them."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return False
        if state == "Z":
            return False
        os.sched_yield()
    return True


@pytest.mark.parametrize(
    ("status", "body", "refusal"),
    [
        (200, {}, None),
        (422, {"code": "image_undecodable", "detail": "No."}, "422 image_undecodable: No."),
        (503, {}, "503 : "),
    ],
)
def test_a_refusal_is_a_sentence(status: int, body: dict[str, Any], refusal: str | None) -> None:
    assert Answer(id="0", status=status, answer=body).refusal == refusal
