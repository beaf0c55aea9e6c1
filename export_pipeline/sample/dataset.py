"""Drawn scenes as an Ultralytics data set, with their labels.

    python -m export_pipeline.sample.dataset .cache/sample/held-out-scenes    # what the certificate uses

A scene is drawn from its seed: the same folder, byte for byte, wherever it is drawn with the same OpenCV.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import cv2
import yaml

from export_pipeline.sample.scenes import CLASS_NAMES, Scene, SceneStyle, draw_scene

HELD_OUT_SEED: Final = 10_000_000
CERTIFICATE_SCENES: Final = 100
_JPEG_QUALITY: Final = 88


def draw_held_out(folder: Path, count: int) -> None:
    """Scenes that no training sees, as the part `val`, described by `data.yaml`."""
    shutil.rmtree(folder, ignore_errors=True)
    write_scenes(folder, "val", draw_many(HELD_OUT_SEED, count, SceneStyle()))
    # Relative to this file: the folder may be moved, and Ultralytics is not who reads it.
    describe(folder, {"val": "images/val"})


def draw_many(first_seed: int, count: int, style: SceneStyle) -> Iterable[Scene]:
    return (draw_scene(first_seed + index, style) for index in range(count))


def describe(folder: Path, parts: dict[str, str]) -> Path:
    """Write `data.yaml`: where the parts of the data set are, and its classes."""
    file = folder / "data.yaml"
    file.write_text(yaml.safe_dump({**parts, "names": dict(enumerate(CLASS_NAMES))}))
    return file


def write_scenes(folder: Path, part: str, scenes: Iterable[Scene]) -> None:
    images, labels = folder / "images" / part, folder / "labels" / part
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    for index, scene in enumerate(scenes):
        picture_bgr = cv2.cvtColor(scene.picture_rgb, cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(images / f"{index:05d}.jpg"), picture_bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
        (labels / f"{index:05d}.txt").write_text(_label_lines(scene))


def _label_lines(scene: Scene) -> str:
    """One `class cx cy w h` line per object, as fractions of the picture."""
    width, height = scene.size_wh
    lines = []
    for item in scene.objects:
        x_min, y_min, x_max, y_max = item.xyxy
        centre = ((x_min + x_max) / 2 / width, (y_min + y_max) / 2 / height)
        size = ((x_max - x_min) / width, (y_max - y_min) / height)
        lines.append(f"{item.class_id} " + " ".join(f"{value:.6f}" for value in (*centre, *size)))
    return "".join(f"{line}\n" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the scenes that the sample's certificate measures on.")
    parser.add_argument("folder", type=Path, help="is replaced")
    parser.add_argument("--count", type=int, default=CERTIFICATE_SCENES)
    arguments = parser.parse_args()
    draw_held_out(arguments.folder, arguments.count)


if __name__ == "__main__":
    main()
