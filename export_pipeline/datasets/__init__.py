"""Labelled pictures on disk, as Ultralytics keeps them: what accuracy is measured on.

::

    data.yaml                        path, val (a folder, a list of them, or a .txt of picture files), names
    images/val/0001.jpg              labels/val/0001.txt: class, then cx cy w h or a polygon, as fractions

    val/<class>/0001.jpg             of a classification: `val`, else `test`

Read on both sides of an export; knows neither torch nor Ultralytics.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from export_pipeline.datasets.paths import labels_folder, read_text
from export_pipeline.errors import BadInput, reading
from export_pipeline.job import sha256_of
from export_pipeline.request import TaskType

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
"""What the gateway takes."""
OTHER_PICTURE_SUFFIXES = frozenset({".avif", ".dng", ".heic", ".heif", ".jp2", ".mpo", ".tif", ".tiff"})
"""What Ultralytics takes besides: refused, since left out in silence they would change the figures."""
MAX_PICTURES = 100_000
OUTSIDE_TOLERANCE = 0.01
"""How far outside of 0..1 a label may be: Ultralytics' own."""


@dataclass(frozen=True, slots=True)
class LabelledPicture:
    """key: unique in its data set. class_id: (m,) int64; of a classification, one.

    xyxy: (m, 4) float64, fractions of width and height; None of a classification.
    """

    key: str
    file: Path
    class_id: NDArray[np.int64]
    xyxy: NDArray[np.float64] | None


@dataclass(frozen=True, slots=True)
class Dataset:
    name: str
    pictures: tuple[LabelledPicture, ...]

    def sha256(self) -> str:
        """Of every picture's key and content and its labels: figures are those of this data set only."""
        whole = hashlib.sha256()
        for picture in self.pictures:
            with reading(picture.file, "the labelled picture"):
                whole.update(f"{picture.key}\0{sha256_of(picture.file)}\0".encode())
            xyxy = None if picture.xyxy is None else picture.xyxy.tolist()
            whole.update(f"{picture.class_id.tolist()} {xyxy}\n".encode())
        return whole.hexdigest()


def open_dataset(
    path: Path, task_type: TaskType, class_names: Sequence[str], max_pictures: int | None
) -> Dataset:
    """Pictures in the order of their paths, the first `max_pictures` of them (of the classes in turn).

    Raises BadInput, naming file and line: what is missing or broken, classes that are not `class_names`, no
    picture, no label in any picture.
    """
    if task_type == "classification":
        dataset = _class_folders(path, class_names, max_pictures)
    elif task_type == "detection":
        dataset = _detection(path, class_names, max_pictures)
    else:
        raise BadInput(f"Accuracy is measured of detection and classification; this is {task_type}.")
    if not dataset.pictures:
        raise BadInput(f"The data set {path} has no pictures.")
    if not any(len(picture.class_id) for picture in dataset.pictures):
        raise BadInput(f"Nothing is labelled in the {len(dataset.pictures)} pictures of the data set {path}.")
    return dataset


def _detection(path: Path, class_names: Sequence[str], max_pictures: int | None) -> Dataset:
    with reading(path, "the data set"):
        description_file = _description_file(path)
        description = _yaml(description_file)
    _require_classes(description, class_names, description_file)
    root = description_file.parent / str(description.get("path") or ".")
    val = description.get("val") or description.get("validation")
    if isinstance(val, str):
        val = [val]
    if not isinstance(val, list) or not val or not all(isinstance(each, str) for each in val):
        raise BadInput(f"{description_file}: val has to be a folder, a .txt file, or a list of them.")
    files = sorted({file for each in val for file in _picture_files(root / each)})[:max_pictures]
    pictures = tuple(_with_boxes(file, root, len(class_names)) for file in files)
    return Dataset(description_file.stem if path.is_file() else path.resolve().name, pictures)


def _description_file(path: Path) -> Path:
    if path.is_file():
        return path
    found = sorted(path.glob("*.yaml")) + sorted(path.glob("*.yml")) if path.is_dir() else []
    if path.is_dir() and len(found) != 1:
        raise BadInput(f"The data set {path} has to hold one .yaml file; it holds {len(found)}.")
    return found[0] if found else path


def _yaml(file: Path) -> dict[str, Any]:
    try:
        description = yaml.safe_load(read_text(file))
    except (yaml.YAMLError, RecursionError) as exc:
        mark = getattr(exc, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark is not None else ""
        raise BadInput(f"{file}{line} is not YAML: {getattr(exc, 'problem', exc)}.") from exc
    if not isinstance(description, dict):
        raise BadInput(f"{file} does not describe a data set: it holds no names and values.")
    return description


def _require_classes(description: dict[str, Any], class_names: Sequence[str], file: Path) -> None:
    names = description.get("names")
    if isinstance(names, dict) and set(names) == set(range(len(names))):
        names = [names[class_id] for class_id in range(len(names))]
    if not isinstance(names, list):
        raise BadInput(f"{file}: names has to be a list, or one name for each number from 0.")
    _refuse_other_classes([str(name) for name in names], class_names, file)


def _refuse_other_classes(names: Sequence[str], class_names: Sequence[str], where: Path) -> None:
    if list(names) == list(class_names):
        return
    if len(names) != len(class_names):
        raise BadInput(f"{where} has {len(names)} classes, the checkpoint {len(class_names)}.")
    index, name, other = next(
        (index, *pair)
        for index, pair in enumerate(zip(names, class_names, strict=True))
        if pair[0] != pair[1]
    )
    raise BadInput(f"{where}: class {index} is {name!r}; the checkpoint calls it {other!r}.")


def _picture_files(source: Path) -> Iterator[Path]:
    with reading(source, "the data set's part"):
        if source.suffix == ".txt":
            files = _listed(source)
        else:
            if not source.is_dir():
                raise BadInput(f"The data set has no folder {source}.")
            files = [file for file in sorted(source.rglob("*")) if _is_picture(file)]
    if len(files) > MAX_PICTURES:
        raise BadInput(f"{source} holds {len(files)} pictures; the most are {MAX_PICTURES}.")
    yield from files


def _listed(source: Path) -> list[Path]:
    files = []
    for number, line in enumerate(read_text(source).splitlines(), 1):
        if not line.strip():
            continue
        file = Path(os.path.normpath(source.parent / line.strip()))
        if not file.is_file():
            raise BadInput(f"{source} line {number}: there is no file {file}.")
        if not _is_picture(file):
            raise BadInput(f"{source} line {number}: {file.name} is not a JPEG, PNG, WebP or BMP.")
        files.append(file)
    return files


def _is_picture(file: Path) -> bool:
    suffix = file.suffix.lower()
    if suffix in OTHER_PICTURE_SUFFIXES:
        raise BadInput(f"{file}: accuracy is compared on JPEG, PNG, WebP and BMP, which the gateway takes.")
    return suffix in PICTURE_SUFFIXES and file.is_file()


def _with_boxes(file: Path, root: Path, class_count: int) -> LabelledPicture:
    labels = labels_folder(file.absolute().parent) / f"{file.stem}.txt"
    rows = []
    if labels.exists():
        with reading(labels, "the label file"):
            lines = read_text(labels).splitlines()
        for number, line in enumerate(lines, 1):
            if line.strip():
                rows.append(_label(line, f"{labels} line {number}", class_count))
    rows = list(dict.fromkeys(rows))
    return LabelledPicture(
        os.path.relpath(file, root),
        file,
        np.array([class_id for class_id, *_ in rows], np.int64),
        np.array([xyxy for _, *xyxy in rows], np.float64).reshape(-1, 4),
    )


def _label(line: str, where: str, class_count: int) -> tuple[int, float, float, float, float]:
    """Class and x_min, y_min, x_max, y_max as fractions. Raises BadInput."""
    try:
        number, *places = (float(word) for word in line.split())
    except ValueError as exc:
        raise BadInput(f"{where}: a label is made of numbers.") from exc
    if len(places) != 4 and (len(places) < 6 or len(places) % 2):
        raise BadInput(f"{where}: a label is a class and 4 numbers, or a class and a polygon's x and y.")
    if number != number // 1 or not 0 <= number < class_count:
        raise BadInput(f"{where}: there is no class {number:g}; the last is {class_count - 1}.")
    if not all(-OUTSIDE_TOLERANCE <= place <= 1 + OUTSIDE_TOLERANCE for place in places):
        raise BadInput(f"{where}: a label's places are fractions of the picture, from 0 to 1.")
    if len(places) == 4:
        x, y, width, height = places
        if width < 0 or height < 0:
            raise BadInput(f"{where}: width and height are not negative.")
        return int(number), x - width / 2, y - height / 2, x + width / 2, y + height / 2
    xs, ys = places[::2], places[1::2]
    return int(number), min(xs), min(ys), max(xs), max(ys)


def _class_folders(path: Path, class_names: Sequence[str], max_pictures: int | None) -> Dataset:
    with reading(path, "the data set"):
        split = next((path / name for name in ("val", "validation", "test") if (path / name).is_dir()), None)
        if split is None:
            raise BadInput(f"The data set {path} has to hold a folder val or test, with one folder a class.")
        folders = sorted(folder.name for folder in split.iterdir() if folder.is_dir())
        _refuse_other_classes(folders, sorted(class_names), split)
        ids = {name: class_id for class_id, name in enumerate(class_names)}
        by_class = [[(file, ids[name]) for file in _picture_files(split / name)] for name in folders]
    in_turn = [each for rank in zip_longest(*by_class) for each in rank if each is not None]
    files = sorted(in_turn[:max_pictures])
    return Dataset(
        path.resolve().name,
        tuple(
            LabelledPicture(os.path.relpath(file, split), file, np.array([class_id], np.int64), None)
            for file, class_id in files
        ),
    )
