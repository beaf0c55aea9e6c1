"""Whatever is wrong with what an export is given: a sentence, an exit code, and nothing half-written.

A model that is served already lies in the repository, and must lie there byte for byte afterwards.
"""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from export_pipeline.job import JobFolder
from tests.support.export_command import Command
from tests.support.exports import (
    COMMAND,
    NAME,
    ROOT,
    SAMPLE_CHECKPOINT,
    Ended,
    FinishedExport,
    export_process,
    golden_handful,
    half_written,
    run_arguments,
    snapshot,
)

EXPORT_PYTHON = ROOT / ".venv-export" / "bin" / "python"
MEBIBYTE = 1024**2


@dataclass(frozen=True)
class World:
    """before: all of the repository, as it has to stay."""

    folder: Path
    repository: Path
    pictures: Path
    before: dict[str, str]

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def arguments(self, **options: str) -> list[str]:
        return run_arguments(self.out, self.repository, self.pictures, **{"name": "new", **options})

    def require_untouched(self) -> None:
        assert snapshot(self.repository) == self.before
        assert half_written(self.folder) == []


@pytest.fixture
def world(tmp_path: Path) -> World:
    repository = tmp_path / "model_repo"
    shutil.copytree(ROOT / "model_repo" / "shapes", repository / "shapes")
    return World(tmp_path, repository, golden_handful(tmp_path / "golden"), dict(snapshot(repository)))


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capsys)


def empty(world: World) -> dict[str, str]:
    (world.folder / "empty.pt").touch()
    return {"checkpoint": str(world.folder / "empty.pt")}


def broken_picture(world: World) -> dict[str, str]:
    whole = (world.pictures / "landscape.jpg").read_bytes()
    (world.pictures / "landscape.jpg").write_bytes(whole[: len(whole) // 2])
    return {}


@pytest.mark.parametrize(
    ("spoil", "exit_code", "sentence"),
    [
        (lambda _: {"checkpoint": "/gone/best.pt"}, 2, "error: The checkpoint /gone/best.pt does not exist."),
        (empty, 2, "empty.pt is empty."),
        (lambda _: {"format": "pdf"}, 2, "'pdf' is not one of 'onnx', 'tensorrt'"),
        (lambda _: {"format": "coreml"}, 3, "error: There is no exporter for coreml yet"),
        (lambda _: {"framework": "timm"}, 3, "error: There is no exporter for timm yet"),
        (lambda _: {"colour": "red"}, 2, "No such option: --colour"),
        (lambda _: {"opset-version": "new"}, 2, "Invalid value for '--opset-version'"),
        (lambda _: {"confidence-threshold": "2"}, 2, "error: export_config.confidence_threshold: "),
        (lambda _: {"checkpoint": "s3://models"}, 2, "error: An S3 address is written s3://bucket/folder/best.pt"),
        (lambda _: {"checkpoint": "https://host/best.pt"}, 2, "https:// is none of them."),
        (lambda _: {"checkpoint": "file://host/best.pt"}, 2, "error: A file:// address is written"),
        (broken_picture, 2, "golden/landscape.jpg cannot be decoded."),
        (lambda _: {"name": "shapes"}, 2, "shapes is taken"),
        *(
            (lambda _, name=name: {"name": name}, 2, "error: name: a model is named with 1 to 128 letters")
            for name in ("../x", "/x", ".x", "a/b", "x" * 129)
        ),
        (lambda _: {"dataset": "/gone/data.yaml"}, 2, "error: The data set /gone/data.yaml does not exist."),
        (lambda world: {"out": str(world.repository / "x")}, 2, "lies in the model repository"),
    ],
)  # fmt: skip
def test_what_can_be_known_is_said_at_once(
    command: Command,
    world: World,
    spoil: Callable[[World], dict[str, str]],
    exit_code: int,
    sentence: str,
) -> None:
    ended = command(*world.arguments(**spoil(world)))

    assert ended.exit_code == exit_code
    assert sentence in ended.sentence
    assert ended.out == ""
    assert not world.out.exists()
    world.require_untouched()


def test_an_empty_name_is_no_name(command: Command, world: World) -> None:
    ended = command(*world.arguments(), "--name", "")

    assert ended.exit_code == 2
    assert "error: name: a model is named with 1 to 128 letters" in ended.sentence
    world.require_untouched()


# What only opening the checkpoint can tell: the isolated process, for real


MAKE_CHECKPOINT = """
import sys, torch
from ultralytics import YOLO
kind, source, target = sys.argv[1:]
if kind == "names":
    content = torch.load(source, weights_only=False)
    content["model"].names = {0: "circle", 1: "square", 2: "triangle"}
    torch.save(content, target)
else:
    torch.save({"state_dict": torch.nn.Linear(2, 3).state_dict(), "arch": "resnet18"}, target)
"""


NOT_ULTRALYTICS = "error: timm.pt is a PyTorch file, but not an Ultralytics checkpoint"
OTHER_CLASSES = "error: The checkpoint names.pt names 3 classes; its network answers 4."


def made_in_the_export_environment(world: World, kind: str) -> Path:
    target = world.folder / f"{kind}.pt"
    subprocess.run(
        [EXPORT_PYTHON, "-c", MAKE_CHECKPOINT, kind, SAMPLE_CHECKPOINT, target],
        env={**os.environ, "YOLO_AUTOINSTALL": "false", "YOLO_CONFIG_DIR": str(world.folder / "settings")},
        timeout=100,
        check=True,
        capture_output=True,
    )
    return target


def not_a_checkpoint(world: World) -> dict[str, str]:
    shutil.copy(world.pictures / "landscape.jpg", world.folder / "picture.pt")
    return {"checkpoint": str(world.folder / "picture.pt")}


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (not_a_checkpoint, "error: picture.pt is not an Ultralytics checkpoint"),
        (lambda world: {"checkpoint": str(made_in_the_export_environment(world, "timm"))}, NOT_ULTRALYTICS),
        (lambda world: {"checkpoint": str(made_in_the_export_environment(world, "names"))}, OTHER_CLASSES),
        (lambda _: {"imgsz": "330"}, "330 pixels is not a multiple of the network's stride, 32"),
    ],
    ids=["not a checkpoint", "another framework", "class count", "stride"],
)
def test_what_the_isolated_process_finds(
    world: World, spoil: Callable[[World], dict[str, str]], sentence: str
) -> None:
    ended = export_process(world.arguments(**spoil(world)))

    assert ended.exit_code == 2
    assert_one_error(ended, sentence)
    assert not {"model", "entry", "package"} & {path.name for path in world.out.iterdir()}
    world.require_untouched()


def assert_one_error(ended: Ended, sentence: str) -> None:
    assert ended.err.startswith("error: ")
    assert sentence in ended.err
    assert "Traceback" not in ended.err
    assert ended.result is None


# Permissions and room


def as_anybody() -> None:
    """Root is let through everywhere by two capabilities; a program started after this has them no more."""
    pr_capbset_drop, cap_dac_override, cap_dac_read_search = 24, 1, 2
    if os.geteuid() == 0:
        for capability in (cap_dac_override, cap_dac_read_search):
            ctypes.CDLL(None).prctl(pr_capbset_drop, capability, 0, 0, 0)


def unreadable_checkpoint(world: World) -> dict[str, str]:
    path = world.folder / "secret.pt"
    shutil.copy(SAMPLE_CHECKPOINT, path)
    path.chmod(0)
    return {"checkpoint": str(path)}


def unwritable_repository(world: World) -> dict[str, str]:
    world.repository.chmod(0o555)
    return {}


def unwritable_out(world: World) -> dict[str, str]:
    (world.folder / "locked").mkdir(mode=0o555)
    return {"out": str(world.folder / "locked" / "job")}


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (unreadable_checkpoint, "secret.pt may not be read: permission denied."),
        (unwritable_repository, "model_repo may not be written: permission denied."),
        (unwritable_out, "locked may not be written: permission denied."),
    ],
)
def test_no_permission(world: World, spoil: Callable[[World], dict[str, str]], sentence: str) -> None:
    ended = export_process(world.arguments(**spoil(world)), preexec_fn=as_anybody)

    assert ended.exit_code == 2
    assert_one_error(ended, sentence)
    assert not world.out.exists()
    world.require_untouched()


@pytest.mark.parametrize(
    ("most_bytes", "result", "left"),
    [
        (1 * MEBIBYTE, "checkpoint", {"job.json", ".lock"}),
        (
            2 * MEBIBYTE,
            "model",
            {"job.json", "state.json", "checkpoint", "checkpoint.json", "fetched.json", "log.txt", ".lock"},
        ),
    ],
    ids=["here", "in the isolated process"],
)
def test_a_file_that_may_not_grow(world: World, most_bytes: int, result: str, left: set[str]) -> None:
    ended = export_process(
        world.arguments(),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes)),
    )

    assert ended.exit_code == 1
    assert ended.err == f"error: There is no room left for {world.out / result}: File too large.\n"
    assert {path.name for path in world.out.iterdir()} == left
    world.require_untouched()


def on_a_small_disk(folder: Path, *arguments: str) -> tuple[int, str, list[str]]:
    """Exit code, error and what is left in `folder`, a file system of one MiB that nobody else sees."""
    mount = f"mount -t tmpfs -o size=1m none '{folder}'"
    script = f'{mount} && "$@" --progress json >&2; code=$?; ls -A "{folder}"; exit $code'
    ended = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return ended.returncode, ended.stderr.splitlines()[-1], sorted(ended.stdout.splitlines())


def test_a_full_disk_under_the_job(world: World) -> None:
    world.out.mkdir()

    exit_code, error, left = on_a_small_disk(world.out, *world.arguments())

    assert exit_code == 1
    assert error == f"error: There is no room left for {world.out}/checkpoint: No space left on device."
    assert left == [".lock", "job.json"]
    world.require_untouched()


@pytest.mark.timeout(240)
def test_a_full_disk_under_the_repository(finished_export: FinishedExport, tmp_path: Path) -> None:
    job, repository = JobFolder(tmp_path / "job"), tmp_path / "model_repo"
    repository.mkdir()
    shutil.copytree(finished_export.job.path, job.path)
    record = job.record()
    request = record.request.model_copy(update={"publish": repository})
    job.create(record.model_copy(update={"request": request}))
    job.forget_steps(["publish.publish"])

    exit_code, error, left = on_a_small_disk(repository, "resume", str(job.path))

    assert exit_code == 1
    assert error == f"error: There is no room left for {repository}/shapes: No space left on device."
    assert [name for name in left if not name.startswith(".")] == []
    assert half_written(job.path) == []
    assert "publish.publish" not in job.state().steps
    assert export_process(["resume", str(job.path)]).exit_code == 0
    assert snapshot(repository / NAME) == snapshot(finished_export.entry)
