"""One model of Triton's repository as it lies there: its versions, and which of them are served."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from export_pipeline.errors import BadInput, ExportError, reading
from export_pipeline.job import sha256_of
from export_pipeline.metadata import read_metadata
from export_pipeline.repository.triton_config import selected_versions

_READ_ATTEMPTS: Final = 100


@dataclass(frozen=True, slots=True)
class Entry:
    """metadata: of each version that has one. taken: every version folder, whoever made it."""

    path: Path
    metadata: Mapping[int, dict[str, Any]]
    taken: frozenset[int]
    default: int
    loaded: frozenset[int]

    @property
    def task_type(self) -> str:
        return str(self.metadata[self.default]["model_info"]["task_type"])

    def loaded_with(self, version: int) -> list[int]:
        """What is loaded where `version` becomes the default."""
        beside = self.default
        agree = _tensors(self.metadata[beside]) == _tensors(self.metadata[version])
        return sorted({beside, version}) if agree else [version]


def read_steadily(path: Path) -> Entry:
    """Without the lock: again, where a writer has put another folder in its place meanwhile."""
    for _ in range(_READ_ATTEMPTS):
        before = _identity(path)
        try:
            entry = read_entry(path)
        except (BadInput, OSError):
            if _identity(path) == before:
                raise
        else:
            if _identity(path) == before:
                return entry
    raise ExportError(f"{path} changes faster than it can be read.")


def _identity(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_ino, status.st_ctime_ns


def read_entry(path: Path) -> Entry:
    """Raises BadInput where this is no entry that a pipeline like this one has written."""
    if path.is_symlink():
        raise BadInput(f"{path} is a symbolic link, not a model's folder.")
    try:
        top = read_metadata(path / "metadata.json")
        config = (path / "config.pbtxt").read_text()
    except (BadInput, OSError, UnicodeDecodeError) as exc:
        raise BadInput(f"{path} is not a model of this pipeline: {exc}") from exc
    default = int(top["model_info"]["version"])
    taken = frozenset(int(each.name) for each in path.iterdir() if _names_a_version(each.name))
    if default not in taken:
        raise BadInput(f"{path} has no version {default}, which its metadata.json names.")
    of_versions = {version: path / str(version) / "metadata.json" for version in taken}
    metadata = {version: read_metadata(file) for version, file in of_versions.items() if file.is_file()}
    loaded = frozenset(selected_versions(config)) or {default}
    return Entry(path, {default: top, **metadata}, taken, default, frozenset(loaded))


def _names_a_version(name: str) -> bool:
    """More digits than 18 do not fit into Triton's numbers."""
    return name.isascii() and name.isdigit() and name[0] != "0" and len(name) <= 18


def _tensors(metadata: dict[str, Any]) -> list[Any]:
    """What a request depends on, and what one config.pbtxt for both versions says."""
    specs = [*metadata["input_spec"], None, *metadata["output_spec"]]
    tensors = [spec and (spec["name"], spec["dtype"], tuple(spec["shape"])) for spec in specs]
    info = metadata["model_info"]
    return [*tensors, info["export_format"], info["model_file"]["name"]]


def says_passed(metadata: dict[str, Any]) -> bool:
    return bool(metadata.get("validation", {}).get("passed") is True)


def require_certified(folder: Path, metadata: dict[str, Any]) -> None:
    """The model file and the certificate are those that the contract names. Raises BadInput."""
    if not says_passed(metadata):
        raise BadInput(f"{folder} has no certificate: it was never compared with its checkpoint.")
    stated = metadata["model_info"]["model_file"]
    hashes = {
        stated["name"]: stated["sha256"],
        "validation.json": metadata["validation"]["report_sha256"],
    }
    for name, sha256 in hashes.items():
        with reading(folder / name, "the file"):
            if sha256_of(folder / name) != sha256:
                raise BadInput(f"{folder / name} is not the file that its metadata.json names.")


def published_at(version_folder: Path) -> float:
    """When its contract was written, in seconds since the epoch; links keep that time."""
    file = version_folder / "metadata.json"
    return (file if file.exists() else version_folder).stat().st_mtime
