"""Where a data set's pictures and labels lie: what a confined process has to be let read, and no more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

_SPLITS: Final = ("train", "val", "validation", "test")
_MAX_TEXT_BYTES = 16 * 1024**2


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
        description = yaml.safe_load(_text(file))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
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
        yield _labels_of(source)
        return
    try:
        lines = _text(source).split("\n")
    except (OSError, ValueError):
        return
    for folder in dict.fromkeys((source.parent / line.strip()).parent for line in lines if line.strip()):
        yield folder
        yield _labels_of(folder)


def _labels_of(pictures: Path) -> Path:
    """As Ultralytics finds them: the last `images` of the path becomes `labels`."""
    parts = list(pictures.parts)
    for index in range(len(parts) - 1, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts)


def _text(file: Path) -> str:
    if file.stat().st_size > _MAX_TEXT_BYTES:
        raise ValueError(f"{file} is too large")
    return file.read_text(encoding="utf-8-sig")
