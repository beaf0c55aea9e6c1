"""Triton's model repository, written so that whoever reads it sees whole entries only.

::

    <repository>/<name>/metadata.json  config.pbtxt      of the default version
    <repository>/<name>/<v>/model.onnx  metadata.json  config.pbtxt  validation.json
    <repository>/<name>/…                                whatever else lies there is carried along

A new model appears by one rename. For a new version or another default the whole entry is made again beside
the old one, and the two change places. The version that was the default is loaded beside the new one where
their tensors agree, so that requests end on the version they began with.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from export_pipeline.errors import BadInput, reading, writing
from export_pipeline.repository.entry import (
    Entry,
    published_at,
    read_entry,
    read_steadily,
    require_certified,
    says_passed,
)
from export_pipeline.repository.swap import appear, copy_tree, drafting, exchange, exclusive, link_tree
from export_pipeline.repository.triton_config import select_versions
from export_pipeline.request import MODEL_NAME, TaskType

KEPT_VERSIONS: Final = 5
_OF_THE_DEFAULT: Final = frozenset({"metadata.json", "config.pbtxt"})


@dataclass(frozen=True, slots=True)
class PublishedVersion:
    """sha256: of the model file. passed: its certificate. published_at: seconds since the epoch."""

    version: int
    is_default: bool
    is_loaded: bool
    sha256: str
    passed: bool
    published_at: float


def next_version(repository: Path, name: str, *, new_version: bool, task_type: TaskType | None = None) -> int:
    """The version that a new model of this name gets: one more than the highest there is.

    Raises BadInput where the name is taken and `new_version` is not said, where what has the name is not an
    entry of this pipeline, and where it is of another task.
    """
    path = repository / name
    if not os.path.lexists(path):
        return 1
    return _next_of(read_steadily(path), new_version, task_type)


def keep_or_next_version(repository: Path, entry: Path, version: int, *, new_version: bool) -> int:
    """For a job that is packaged again: its own version, unless another job's model has it by now.

    entry: what the job made before, `…/<name>`, which may be missing. Raises BadInput as `next_version`.
    """
    path = repository / entry.name
    if not os.path.lexists(path):
        return version
    published = read_steadily(path)
    if version > max(published.taken, default=0) and new_version:
        return version
    if _is_published(published, entry, version):
        return version
    return _next_of(published, new_version, None)


def list_versions(repository: Path, name: str) -> list[PublishedVersion]:
    """Oldest first. Raises BadInput where there is no such entry."""
    path = _folder_of(repository, name)
    entry = read_steadily(path)
    return [
        PublishedVersion(
            version=version,
            is_default=version == entry.default,
            is_loaded=version in entry.loaded,
            sha256=metadata["model_info"]["model_file"]["sha256"],
            passed=says_passed(metadata),
            published_at=published_at(path / str(version)),
        )
        for version, metadata in sorted(entry.metadata.items())
    ]


def set_default(repository: Path, name: str, version: int) -> None:
    """Serve this version from now on. Raises BadInput for one that is not there or not certified."""
    path = _folder_of(repository, name)
    with writing(path), exclusive(repository):
        entry = read_entry(path)
        if version not in entry.metadata:
            known = ", ".join(map(str, sorted(entry.metadata)))
            raise BadInput(f"The model {name} has no version {version}; it has {known}.")
        if version == entry.default:
            return
        require_certified(path / str(version), entry.metadata[version])
        with drafting(path) as draft:
            _carry_along(entry, draft)
            _put_on_top(draft, version, entry.loaded_with(version))
            exchange(draft, path)


def publish_entry(
    repository: Path, entry: Path, *, new_version: bool, kept_versions: int = KEPT_VERSIONS
) -> bool:
    """Put the one version that `entry` (`…/<name>`) holds into the repository, and make it the default.

    kept_versions: older ones are removed, but for the default and the one that is loaded beside it.
    Returns False where this very version lies there already, and changes nothing then. Raises BadInput where
    the name or the version is taken, ExportError where there is no room.
    """
    made = read_entry(entry)
    version = made.default
    require_certified(entry / str(version), made.metadata[version])
    path = repository / entry.name
    if not repository.is_dir():
        raise BadInput(f"The model repository {repository} is not a folder.")
    with writing(path), exclusive(repository):
        if not os.path.lexists(path):
            with drafting(path) as draft:
                copy_tree(entry, draft)
                require_certified(draft / str(version), made.metadata[version])
                appear(draft, path)
            return True
        published = read_entry(path)
        if _is_published(published, entry, version):
            return False
        _require_free(published, made, version, new_version)
        with drafting(path) as draft:
            _carry_along(published, draft)
            _add_version(published, made, draft, kept_versions)
            exchange(draft, path)
    return True


def _folder_of(repository: Path, name: str) -> Path:
    if not MODEL_NAME.fullmatch(name):
        raise BadInput(f"{name!r} is not a model's name.")
    with reading(repository / name, "the model"):
        (repository / name).stat()
    return repository / name


def _require_free(published: Entry, made: Entry, version: int, new_version: bool) -> None:
    task_type: Any = made.task_type
    free = _next_of(published, new_version, task_type)
    if version < free:
        raise BadInput(
            f"Version {version} of {published.path.name} was published by another job meanwhile. "
            f"`visiongate-export resume --from package` packages this job's model as version {free}."
        )


def _next_of(published: Entry, new_version: bool, task_type: TaskType | None) -> int:
    name = published.path.name
    if not new_version:
        raise BadInput(f"The name {name} is taken in {published.path.parent}; --new-version adds to it.")
    if task_type is not None and task_type != published.task_type:
        raise BadInput(f"{name} is a model for {published.task_type}, and cannot become one for {task_type}.")
    return max(published.taken, default=0) + 1


def _is_published(published: Entry, entry: Path, version: int) -> bool:
    """A contract names model file and certificate by their hashes: equal contracts, equal versions."""
    ours, theirs = (folder / str(version) / "metadata.json" for folder in (entry, published.path))
    return ours.is_file() and theirs.is_file() and ours.read_bytes() == theirs.read_bytes()


def _add_version(published: Entry, made: Entry, draft: Path, kept_versions: int) -> None:
    version = made.default
    added = draft / str(version)
    added.mkdir()
    copy_tree(made.path / str(version), added)
    require_certified(added, made.metadata[version])
    together = Entry(
        path=draft,
        metadata={**published.metadata, **made.metadata},
        taken=published.taken | made.taken,
        default=published.default,
        loaded=published.loaded,
    )
    loaded = together.loaded_with(version)
    _put_on_top(draft, version, loaded)
    spare = [old for old in sorted(together.metadata) if old not in {*loaded, published.default}]
    for old in spare[: max(0, len(together.metadata) - kept_versions)]:
        shutil.rmtree(draft / str(old))


def _carry_along(entry: Entry, draft: Path) -> None:
    """All but the default's files. An entry made by hand has them on top only: its version gets them, too."""
    link_tree(entry.path, draft, leave_out=_OF_THE_DEFAULT)
    for name in _OF_THE_DEFAULT:
        of_version = draft / str(entry.default) / name
        if not of_version.exists():
            shutil.copy2(entry.path / name, of_version)


def _put_on_top(draft: Path, version: int, loaded: list[int]) -> None:
    shutil.copyfile(draft / str(version) / "metadata.json", draft / "metadata.json")
    config = (draft / str(version) / "config.pbtxt").read_text()
    (draft / "config.pbtxt").write_text(select_versions(config, loaded))
