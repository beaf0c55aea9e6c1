"""The golden pictures: the caller's own, or the two photographs that come with Ultralytics, in some forms.

The forms exercise the letterbox: odd sizes, both orientations, smaller and larger than the model's input,
one channel. They are stored without loss, so that every decoder sees the same pixels.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from export_pipeline.errors import ExportError, reading
from export_pipeline.preflight import picture_files, require_decodable

DEFAULT_SOURCE = "bus.jpg and zidane.jpg of Ultralytics, in several forms"
PHOTOGRAPHS = ("bus", "zidane")


def copy_pictures(source: Path, target: Path) -> int:
    """Copy a folder's pictures, each decoded once before; how many. Raises BadInput naming the broken one."""
    files = picture_files(source)
    require_decodable(source)
    for file in files:
        with reading(file, "the golden picture"):
            shutil.copyfile(file, target / file.name)
    return len(files)


def draw_default_pictures(target: Path) -> int:
    """Write the default set, the same bytes each time with the same OpenCV; how many."""
    count = 0
    for name in PHOTOGRAPHS:
        file = _assets() / f"{name}.jpg"
        shutil.copyfile(file, target / file.name)
        photograph = cv2.imread(str(file), cv2.IMREAD_COLOR)
        if photograph is None:
            raise ExportError(f"{file} of Ultralytics cannot be decoded.")
        for form, pixels in _forms(photograph.astype(np.uint8, copy=False)):
            if not cv2.imwrite(str(target / f"{name}_{form}.png"), pixels):
                raise ExportError(f"{target / name}_{form}.png cannot be written.")
            count += 1
        count += 1
    return count


def _forms(bgr: NDArray[np.uint8]) -> Iterator[tuple[str, NDArray[Any]]]:
    height, width = bgr.shape[:2]
    yield "portrait", _resized(bgr[:, width // 4 : width // 4 + height // 3], height=517)
    yield "landscape", _resized(bgr[height // 3 : height // 3 + width // 3], height=211)
    yield "small", _resized(bgr, height=97)
    yield "grey", cv2.cvtColor(_resized(bgr, height=333), cv2.COLOR_BGR2GRAY)
    yield "enlarged", _resized(bgr[height // 4 : -height // 4, width // 4 : -width // 4], height=900)


def _resized(bgr: NDArray[np.uint8], *, height: int) -> NDArray[np.uint8]:
    width = round(bgr.shape[1] * height / bgr.shape[0])
    filtered = cv2.resize(
        bgr, (width, height), interpolation=cv2.INTER_AREA if height < len(bgr) else cv2.INTER_CUBIC
    )
    return filtered.astype(np.uint8, copy=False)


def _assets() -> Path:
    """Found without importing Ultralytics, which takes seconds and is not needed for a photograph."""
    found = importlib.util.find_spec("ultralytics")
    if found is None or found.origin is None:
        raise ExportError("Ultralytics is not installed here, whose photographs are the golden pictures.")
    return Path(found.origin).parent / "assets"
