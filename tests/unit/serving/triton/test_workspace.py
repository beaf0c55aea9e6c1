from __future__ import annotations

from pathlib import Path

import pytest

from serving.errors import OperatorError
from serving.triton.workspace import SHARED_MEMORY, Workspace


def leave_shared_memory(prefix: str) -> Path:
    region = SHARED_MEMORY / f"{prefix}region"
    region.write_bytes(b"left behind")
    return region


def test_each_has_a_folder_and_a_shared_memory_prefix_of_its_own(tmp_path: Path) -> None:
    one, other = Workspace(tmp_path), Workspace(tmp_path)

    assert one.path != other.path
    assert one.shared_memory_prefix != other.shared_memory_prefix
    assert one.path.stat().st_mode & 0o777 == 0o700
    one.close()
    other.close()
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_what_belongs_to_a_living_run_stays(tmp_path: Path) -> None:
    living = Workspace(tmp_path)
    region = leave_shared_memory(living.shared_memory_prefix)

    Workspace(tmp_path).close()

    assert living.path.is_dir()
    assert region.exists()
    living.close()
    assert not region.exists()


def test_what_a_dead_run_left_is_removed(tmp_path: Path) -> None:
    dead = tmp_path / "visiongate-triton-dead"
    (dead / "backends").mkdir(parents=True)
    (dead / "lock").touch()
    never_locked = tmp_path / "visiongate-triton-never"
    never_locked.mkdir()
    somebody_elses = tmp_path / "precious"
    somebody_elses.mkdir()
    region = leave_shared_memory("visiongate-triton-dead-")

    Workspace(tmp_path).close()

    assert not dead.exists()
    assert not never_locked.exists()
    assert somebody_elses.exists()
    assert not region.exists()


def test_a_place_that_cannot_be_used_is_an_operator_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(OperatorError, match="cannot be used to run Triton in"):
        Workspace(tmp_path / "file")


def test_a_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getuid", lambda: tmp_path.stat().st_uid + 1)

    with pytest.raises(OperatorError, match="belongs to another user"):
        Workspace(tmp_path)
