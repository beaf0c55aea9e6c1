"""`visiongate-export` as a person types it: what it asks for, what it says, how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from export_pipeline import api
from export_pipeline.cli import main
from export_pipeline.cli import values as cli_values
from export_pipeline.errors import BadInput, ExportError, LimitExceeded, Unsupported, ValidationFailed
from export_pipeline.executors import Executor
from export_pipeline.request import ExportRequest
from tests.support.export_command import Command
from tests.support.export_stages import METADATA, FakeStages, HereExecutor

FOREVER_SECONDS = 60


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capsys)


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> FakeStages:
    def run(_self: object, *arguments: Any) -> None:
        HereExecutor().run(*arguments)

    monkeypatch.setattr(api.ConfinedHere, "run", run)
    return FakeStages(monkeypatch)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "best.pt").write_bytes(b"a checkpoint")
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


RUN = ("run", "--checkpoint", "best.pt", "--name", "cats", "--out", "job")


class Asked(Exception):
    def __init__(self, request: ExportRequest, out: Path, executor: Executor) -> None:
        self.request, self.out, self.executor = request, out, executor


def asked(command: Command, monkeypatch: pytest.MonkeyPatch, options: Sequence[str]) -> Asked:
    def export(request: ExportRequest, out: Path, *, executor: Executor, progress: object) -> None:
        raise Asked(request, out, executor)

    monkeypatch.setattr(api, "export", export)
    with pytest.raises(Asked) as caught:
        command(*RUN, *options)
    return caught.value


def value_at(request: ExportRequest, path: str) -> object:
    found: object = request
    for name in path.split("."):
        found = getattr(found, name)
    return found


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        ("", "checkpoint", "best.pt"),
        ("", "name", "cats"),
        ("", "export_format", "onnx"),
        ("--format onnx", "export_format", "onnx"),
        ("--framework ultralytics", "framework", "ultralytics"),
        ("--publish models", "publish", Path("models")),
        ("--new-version", "new_version", True),
        ("--imgsz 320", "export_config.imgsz", (320, 320)),
        ("--imgsz 640x384", "export_config.imgsz", (640, 384)),
        ("", "export_config.imgsz", None),
        ("--opset-version 15", "export_config.opset_version", 15),
        ("--precision fp16", "export_config.precision", "fp16"),
        ("--head raw", "export_config.head", "raw"),
        ("--no-embed-preprocessing", "export_config.embed_preprocessing", False),
        ("--embed-preprocessing", "export_config.embed_preprocessing", True),
        ("--embed-nms", "export_config.embed_nms", True),
        ("--no-embed-nms", "export_config.embed_nms", False),
        ("--max-batch-size 4", "export_config.max_batch_size", 4),
        ("--no-dynamic-axes --max-batch-size 1", "export_config.dynamic_axes", False),
        ("--dynamic-axes", "export_config.dynamic_axes", True),
        ("--confidence-threshold 0.5", "export_config.confidence_threshold", 0.5),
        ("--iou-threshold 0.6", "export_config.iou_threshold", 0.6),
        ("--max-detections 7", "export_config.max_detections", 7),
        ("--pictures golden", "validation_config.pictures", Path("golden")),
        ("--dataset data.yaml", "validation_config.dataset", Path("data.yaml")),
        ("--max-pictures 9", "validation_config.max_pictures", 9),
        ("--accuracy-drop-max 0.2", "validation_config.fail_threshold.accuracy_drop_max", 0.2),
        ("--no-validation", "validation_config.enabled", False),
        ("", "validation_config.enabled", True),
        ("--memory-limit 3GiB", "limits.memory_bytes", 3 * 1024**3),
        ("--time-limit 90s", "limits.time_seconds", 90.0),
    ],
)
def test_each_option_says_its_field(
    command: Command, monkeypatch: pytest.MonkeyPatch, options: str, field: str, value: object
) -> None:
    assert value_at(asked(command, monkeypatch, options.split()).request, field) == value


def test_what_is_not_said_is_left_to_the_request(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    found = asked(command, monkeypatch, [])

    assert found.request == ExportRequest(checkpoint="best.pt", name="cats")
    assert found.out == Path("job")


@pytest.mark.parametrize(("options", "unconfined"), [([], False), (["--unconfined"], True)])
def test_a_checkpoint_is_confined_unless_somebody_says_otherwise(
    command: Command, monkeypatch: pytest.MonkeyPatch, options: list[str], unconfined: bool
) -> None:
    executor = asked(command, monkeypatch, options).executor

    assert isinstance(executor, api.ConfinedHere)
    assert executor.unconfined is unconfined


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--format pdf", "'pdf' is not one of 'onnx', 'tensorrt'"),
        ("--imgsz huge", "'huge' is no size; write 320, or 640x384"),
        ("--imgsz 31", "export_config.imgsz.0: Input should be greater than or equal to 32"),
        ("--opset-version new", "Invalid value for '--opset-version'"),
        ("--opset-version 99", "export_config.opset_version: Input should be less than or equal to 21"),
        ("--memory-limit 12", "'12' is no amount of memory; write 12GiB or 900MiB."),
        ("--time-limit soon", "'soon' is no duration; write 90s, 30m or 2h."),
        ("--colour red", "No such option: --colour"),
        ("--progress loud", "'loud' is not one of 'rich', 'json'"),
        ("--publish models --no-validation", "nothing is published without a certificate"),
    ],
)
def test_options_that_are_wrong_end_with_2(
    command: Command, world: Path, options: str, sentence: str
) -> None:
    ended = command(*RUN, *options.split())

    assert ended.exit_code == 2
    assert sentence in ended.sentence
    assert ended.out == ""
    assert not (world / "job").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--format tensorrt", "error: There is no exporter for tensorrt yet; there is one for onnx."),
        ("--framework timm", "error: There is no exporter for timm yet; there is one for ultralytics."),
        ("--precision int8", "error: There is no int8 for onnx yet; there are fp32 and fp16."),
    ],
)
def test_what_cannot_be_exported_ends_with_3(
    command: Command, world: Path, options: str, sentence: str
) -> None:
    ended = command(*RUN, *options.split())

    assert (ended.exit_code, ended.sentence) == (3, sentence)


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (BadInput("It is [bold]so[/]."), 2),
        (Unsupported("It is so."), 3),
        (ValidationFailed("It is so."), 4),
        (LimitExceeded("It is so."), 1),
        (ExportError("It is so."), 1),
        (RuntimeError("It is so."), 1),
    ],
)
def test_an_error_is_a_sentence_and_an_exit_code(
    command: Command, stages: FakeStages, world: Path, error: Exception, exit_code: int
) -> None:
    def fail(name: str) -> None:
        if name == "validate.judge":
            raise error

    stages.inside = fail
    ended = command(*RUN, "--progress", "json")

    assert ended.exit_code == exit_code
    assert ended.err.startswith("error: ")
    assert str(error) in ended.err
    assert len(ended.err.splitlines()) == 1
    assert "Traceback" not in ended.err


def test_what_others_have_written_drives_no_terminal(
    command: Command, stages: FakeStages, world: Path
) -> None:
    def fail(name: str) -> None:
        if name == "validate.judge":
            raise BadInput("\x1b]0;owned\x07\udce9 [bold]is so.")

    stages.inside = fail
    ended = command(*RUN, "--progress", "json")

    assert ended.err == "error:  ]0;owned   [bold]is so.\n"


def test_progress_for_programs_is_a_line_an_event(command: Command, stages: FakeStages, world: Path) -> None:
    ended = command(*RUN, "--publish", "models", "--progress", "json")

    *events, last = [json.loads(line) for line in ended.out.splitlines()]
    assert (ended.exit_code, ended.err) == (0, "")
    assert events[0] == {"step": "checkpoint.fetch", "kind": "began", "message": "", "fraction": None}
    assert events[-1] == {"step": "publish.publish", "kind": "done", "message": "", "fraction": None}
    result = last["result"]
    assert result["package"] == str(world / "job" / "cats-1.zip")
    assert result["published"] == str(world / "models" / "cats")
    assert (result["version"], result["name"], result["certificate"]["passed"]) == (1, "cats", True)
    assert list(result["seconds"]) == ["checkpoint", "export", "validate", "package", "publish"]


def test_progress_for_people_is_a_line_a_stage(command: Command, stages: FakeStages, world: Path) -> None:
    ended = command(*RUN, "--publish", "models")

    lines = [line.split() for line in ended.err.splitlines() if line.strip()]
    assert [line[1] for line in lines] == ["checkpoint", "export", "validate", "package", "publish"]
    assert {line[0] for line in lines} == {"✓"}
    assert f"Package: {world}/job/cats-1.zip" in ended.out
    assert f"Published: {world}/models/cats, version 1" in ended.out
    assert "Gateways on it serve POST /v1/infer/cats within seconds" in ended.out


def test_the_certificate_is_told_in_short(command: Command, stages: FakeStages, world: Path) -> None:
    out = command(*RUN).out

    assert "93 predictions in 18 pictures" in out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if "│" in line]
    assert ["file", "0.00012", "0.998", "0.0004", "0"] in rows
    assert ["gateway", "", "0.997", "0.0006", "1"] in rows
    assert ["mAP50", "0.9500", "0.9490", "0.9480"] in rows
    assert "Published" not in out


def test_a_data_sets_name_is_no_markup(
    command: Command, stages: FakeStages, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METADATA["validation"]["accuracy"], "dataset", "[/foo]")

    ended = command(*RUN)

    assert ended.exit_code == 0
    assert "[/foo], 100 pictures" in ended.out


def test_why_the_gateway_does_not_serve_it_is_told(
    command: Command, stages: FakeStages, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METADATA["validation"], "gateway_refused", "It is for [masks].")
    monkeypatch.delitem(METADATA["validation"]["paths"], "gateway")

    out = command(*RUN, "--publish", "models").out

    assert "The gateway does not serve it: It is for [masks]." in out
    assert "POST" not in out


def test_a_stage_that_was_done_before_says_so(command: Command, stages: FakeStages, world: Path) -> None:
    command(*RUN)
    ended = command(*RUN)

    assert ended.exit_code == 0
    assert [line.split()[-2:] for line in ended.err.splitlines() if "✓" in line] == [["done", "before"]] * 4
    assert f"Package: {world}/job/cats-1.zip" in ended.out


def test_a_stage_that_failed_is_not_ticked_off(command: Command, stages: FakeStages, world: Path) -> None:
    def fail(name: str) -> None:
        if name == "validate.serve":
            raise BadInput("No.")

    stages.inside = fail

    ticked = [line.split()[1] for line in command(*RUN).err.splitlines() if "✓" in line]
    assert ticked == ["checkpoint", "export"]


def test_the_recorded_command_does_its_stage_again(command: Command, stages: FakeStages, world: Path) -> None:
    command(*RUN)
    record = json.loads((world / "job" / "state.json").read_text())["steps"]["validate.judge"]
    stages.ran = []

    program, *arguments = record["command"].split()
    ended = command(*arguments)

    assert (program, ended.exit_code) == ("visiongate-export", 0)
    assert stages.ran == ["validate.pictures", "validate.measure", "validate.serve", "validate.judge"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_130_and_it_can_go_on(
    command: Command, stages: FakeStages, world: Path, number: signal.Signals
) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]

    def stop(name: str) -> None:
        if name == "package.entry":
            signal.raise_signal(number)

    stages.inside = stop
    ended = command(*RUN, "--progress", "json")

    assert ended.exit_code == 130
    assert ended.err == "error: Cancelled; `visiongate-export resume` goes on where it stopped.\n"
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
    stages.inside = lambda _name: None
    assert command("resume", "job").exit_code == 0


def test_a_reader_that_goes_away_does_not_stop_the_job(
    command: Command, stages: FakeStages, world: Path
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout, pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(sys, "stdout", stdout)
        monkeypatch.setattr(sys, "argv", ["visiongate-export", *RUN, "--progress", "json"])
        with pytest.raises(SystemExit, match=r"^0$"):
            main()
    assert (world / "job" / "cats-1.zip").is_file()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("resume", "models"), "holds no export job"),
        (("resume", "job", "--from", "training"), "'training' is not one of"),
        (("verify", "gone.zip"), "gone.zip"),
        (("versions", "cats", "--repository", "models"), "cats"),
        (("set-default", "cats", "1", "--repository", "models"), "cats"),
        (("set-default", "../models", "1", "--repository", "models"), "models"),
    ],
)
def test_other_verbs_refuse_what_is_not_there(
    command: Command, world: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    ended = command(*arguments)

    assert ended.exit_code == 2
    assert sentence in ended.sentence
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(("text", "size"), [("320", (320, 320)), ("640x384", (640, 384)), ("1x2", (1, 2))])
def test_sizes(text: str, size: tuple[int, int]) -> None:
    assert cli_values.picture_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "320x", "x320", "3 2", "-320", "320.5", "320x320x320", "٣٢٠"])
def test_what_is_no_size(command: Command, world: Path, text: str) -> None:
    assert command(*RUN, f"--imgsz={text}").exit_code == 2


def test_the_command_starts_without_anything_of_the_isolated_process() -> None:
    """Its help needs neither torch nor the tools that the stages use."""
    ended = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, export_pipeline.cli\n"
            "print([name for name in ('torch', 'ultralytics', 'onnxruntime', 'cv2', 'obstore', 'serving') "
            "if name in sys.modules])",
        ],
        capture_output=True,
        text=True,
        timeout=FOREVER_SECONDS,
        check=True,
    )

    assert ended.stdout.strip() == "[]"
