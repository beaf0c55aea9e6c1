"""What is lent to an isolated process, and what is taken over from it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from export_pipeline.errors import ExportError
from export_pipeline.executors.staging import own_folder, take_over
from export_pipeline.job import JobFolder, JobRecord
from export_pipeline.request import read_request

RECORD = JobRecord(job_id="job", version=1, request=read_request({"checkpoint": "c.pt", "name": "cats"}))


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    folder = JobFolder(tmp_path)
    folder.create(RECORD)
    folder.write("checkpoint/c.pt", b"weights")
    folder.write("checkpoint.json", b"facts")
    return folder


def test_results_of_steps_before_are_lent_and_nothing_else(folder: JobFolder) -> None:
    folder.write("validation.json", b"{}")

    with own_folder(folder, RECORD, "export.graph") as own:
        assert sorted(path.name for path in own.iterdir()) == [".private", "checkpoint", "checkpoint.json"]
        assert all((own / name).is_symlink() for name in ("checkpoint", "checkpoint.json"))
        assert (own / "checkpoint" / "c.pt").read_bytes() == b"weights"
        assert own.stat().st_mode & 0o777 == 0o700

    assert not own.exists()
    assert folder.checkpoint_file.read_bytes() == b"weights"


def test_what_a_killed_process_left_is_gone(folder: JobFolder) -> None:
    with own_folder(folder, RECORD, "export.graph") as own:
        pass
    own.mkdir()
    (own / "model").symlink_to("/etc")

    with own_folder(folder, RECORD, "export.graph") as own:
        assert not (own / "model").is_symlink()


def test_files_and_folders_are_taken_over(folder: JobFolder) -> None:
    folder.write("model/old.onnx", b"of an earlier run")
    with own_folder(folder, RECORD, "export.graph") as own:
        (own / "model" / "deep").mkdir(parents=True)
        (own / "model" / "deep" / "model.onnx").write_bytes(b"graph")
        (own / "measurements" / "local").mkdir(parents=True)
        (own / "facts.json").write_bytes(b"new")
        take_over(own, folder, ["model", "measurements/local", "facts.json"])
        assert (folder.path / "facts.json").stat().st_ino == (own / "facts.json").stat().st_ino

    assert [path.name for path in folder.model_folder.rglob("*")] == ["deep", "model.onnx"]
    assert (folder.path / "measurements" / "local").is_dir()
    assert (folder.path / "facts.json").read_bytes() == b"new"


def test_without_hard_links_they_are_copied(folder: JobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    with own_folder(folder, RECORD, "export.graph") as own:
        (own / "model").mkdir()
        (own / "model" / "model.onnx").write_bytes(b"graph")
        take_over(own, folder, ["model"])

    assert (folder.model_folder / "model.onnx").read_bytes() == b"graph"


@pytest.mark.parametrize("kind", ["link", "folder link", "pipe", "link inside", "pipe inside"])
@pytest.mark.parametrize("hard_links", [True, False])
def test_what_is_no_plain_file_is_refused(
    kind: str, hard_links: bool, folder: JobFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    folder.write("model/old.onnx", b"of an earlier run")
    if not hard_links:
        test_without_hard_links_they_are_copied(folder, monkeypatch)
    with own_folder(folder, RECORD, "export.graph") as own:
        result = own / "model"
        if kind.endswith("inside"):
            result.mkdir()
            result /= "model.onnx"
        if "pipe" in kind:
            os.mkfifo(result)
        else:
            result.symlink_to("/etc" if kind == "folder link" else secret)

        with pytest.raises(ExportError, match="neither a file nor a folder"):
            take_over(own, folder, ["model"])

    assert not (folder.model_folder / "model.onnx").is_symlink()


def test_what_was_not_left_is_named(folder: JobFolder) -> None:
    with (
        own_folder(folder, RECORD, "export.graph") as own,
        pytest.raises(ExportError, match="did not leave model"),
    ):
        take_over(own, folder, ["model"])


def _deep(result: Path) -> None:
    (result / "/".join("abcdefghi")).mkdir(parents=True)


def _many(result: Path) -> None:
    result.mkdir()
    for number in range(2001):
        (result / str(number)).touch()


def _of_length(name: str, length_bytes: int, count: int = 1) -> Callable[[Path], None]:
    """With holes: it takes no room."""

    def leave(result: Path) -> None:
        result.mkdir()
        for number in range(count):
            with (result / f"{number}{name}").open("wb") as file:
                file.truncate(length_bytes)

    return leave


@pytest.mark.parametrize(
    ("leave", "says"),
    [
        (_deep, "deeper folders, than it may"),
        (_many, "more files, or"),
        (_of_length(".json", 64 * 1024**2 + 1), r"left 0\.json, which makes more bytes than it may"),
        (_of_length(".npz", 1024**3 + 1), r"left 0\.npz, which makes"),
        (_of_length(".onnx", 16 * 1024**3 + 1), r"left 0\.onnx, which makes"),
        (_of_length(".onnx", 6 * 1024**3, count=3), r"left \d\.onnx, which makes"),
    ],
)
def test_what_is_too_much_is_refused(leave: Callable[[Path], None], says: str, folder: JobFolder) -> None:
    with own_folder(folder, RECORD, "export.graph") as own:
        leave(own / "model")

        with pytest.raises(ExportError, match=says):
            take_over(own, folder, ["model"])

    assert not folder.model_folder.exists()
