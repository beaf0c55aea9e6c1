"""Where a data set's pictures and labels lie: what a confined process has to be let read, and no more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from export_pipeline.errors import BadInput

_SPLITS: Final = ("train", "val", "validation", "test")
MAX_TEXT_BYTES: Final = 16 * 1024**2


def paths_of(dataset: Path) -> list[Path]:
    """The data set's folder; or a `data.yaml` and the folders that it names, not the whole folder it lies in.

    Who names a data set trusts its description. What cannot be read names nothing: where the data set is
    opened, the error is told.
    """
    dataset = dataset.absolute()
    descriptions = [*dataset.glob("*.yaml"), *dataset.glob("*.yml")] if dataset.is_dir() else [dataset]
    named = [path for file in descriptions for path in _named_by(file)]
    return list(dict.fromkeys([dataset, *named]))


def _named_by(file: Path) -> Iterator[Path]:
    try:
        description = yaml.safe_load(read_text(file))
    except (BadInput, OSError, ValueError, RecursionError, yaml.YAMLError):
        return
    if not isinstance(description, dict):
        return
    root = file.parent
    if description.get("path"):
        root /= str(description["path"])
        yield root
    for split in _SPLITS:
        for entry in _entries(description.get(split)):
            yield from _with_labels(root / entry)


def _entries(value: Any) -> list[str]:
    entries = value if isinstance(value, list) else [value]
    return [entry for entry in entries if isinstance(entry, str)]


def _with_labels(source: Path) -> Iterator[Path]:
    yield source
    if source.suffix != ".txt":
        yield labels_folder(source)
        return
    try:
        lines = read_text(source).split("\n")
    except (BadInput, OSError):
        return
    for folder in dict.fromkeys((source.parent / line.strip()).parent for line in lines if line.strip()):
        yield folder
        yield labels_folder(folder)


def labels_folder(pictures: Path) -> Path:
    """Of a folder of pictures, as Ultralytics finds it: the last `images` of the path becomes `labels`."""
    parts = list(pictures.parts)
    for index in range(len(parts) - 1, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts)


def read_text(file: Path) -> str:
    """A description, list or label file. Raises BadInput for one that is too large or not UTF-8; OSError."""
    if file.stat().st_size > MAX_TEXT_BYTES:
        raise BadInput(f"{file} is larger than {MAX_TEXT_BYTES // 1024**2} MiB.")
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as exc:
        raise BadInput(f"{file} is not UTF-8 text.") from exc
