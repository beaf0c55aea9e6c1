"""Model repositories of tiny models, and what their readers see."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

from export_pipeline.repository import list_versions
from export_pipeline.repository.swap import LOCK_FILE
from export_pipeline.repository.triton_config import selected_versions
from tests.support.export_jobs import Kind, make_entry


class EntryMaker:
    """`make(version)`: the certified entry of a job of its own; another `checkpoint` is another model."""

    def __init__(self, jobs: Path) -> None:
        self._jobs = jobs
        self._count = itertools.count()

    def __call__(self, version: int, kind: Kind | str = "raw", **job: Any) -> Path:
        asked = {"checkpoint": f"{version}.pt", "name": "m", **job}
        return make_entry(self._jobs / str(next(self._count)), kind, version=version, **asked)


def numbers(repository: Path, name: str = "m") -> list[int]:
    return [each.version for each in list_versions(repository, name)]


def served(repository: Path, name: str = "m") -> tuple[int, tuple[int, ...]]:
    """The default version, and those that Triton loads: all files say the same of it."""
    metadata = json.loads((repository / name / "metadata.json").read_bytes())
    loaded = selected_versions((repository / name / "config.pbtxt").read_text())
    versions = list_versions(repository, name)
    (default,) = (each.version for each in versions if each.is_default)
    assert metadata["model_info"]["version"] == str(default)
    assert tuple(each.version for each in versions if each.is_loaded) == loaded
    return default, loaded


def copy_entry(entry: Path, copy: Path, *, model: bytes | None = None) -> None:
    """Another entry of the gateway's, named as its folder; model: what is in its first version instead."""
    shutil.copytree(entry, copy)
    metadata = json.loads((copy / "metadata.json").read_bytes())
    metadata["model_info"]["model_name"] = copy.name
    if model is not None:
        (copy / "1" / "model.onnx").write_bytes(model)
        file = {"sha256": hashlib.sha256(model).hexdigest(), "size_bytes": len(model)}
        metadata["model_info"]["model_file"] |= file
    (copy / "metadata.json").write_text(json.dumps(metadata))
    config = (copy / "config.pbtxt").read_text()
    (copy / "config.pbtxt").write_text(config.replace(f'name: "{entry.name}"', f'name: "{copy.name}"'))


def everything_in(folder: Path) -> dict[str, str]:
    """The hash of every file by its path, but for the writers' lock."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != LOCK_FILE
    }


def model_sha256(entry: Path, version: int) -> str:
    return hashlib.sha256((entry / str(version) / "model.onnx").read_bytes()).hexdigest()
