"""Train the sample detector from nothing and say how good it is.

    python -m export_pipeline.sample.train --out .cache/shapes

Needs the `export` extra (Ultralytics, torch); about ten minutes on two cores. It trains on scenes of 192 px
whose shapes are as large as they are at 320 px: a third of the work a picture, and a convolutional network
does not mind. It is measured on whole scenes at 320 px.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("YOLO_AUTOINSTALL", "false")  # Ultralytics would install packages behind our back.

import cv2
import ultralytics.data.utils
import ultralytics.utils.torch_utils
import yaml
from ultralytics import YOLO

from export_pipeline.sample.scenes import CLASS_NAMES, Scene, SceneStyle, draw_scene

HERE: Final = Path(__file__).parent
NETWORK: Final = HERE / "shapes.yaml"
INPUT_PX: Final = 320
TRAINING_PX: Final = 192
TRAINING_SEED: Final = 20_000
TRAINING_SCENES: Final = 3000
TRAINING_STYLE: Final = SceneStyle(
    side_range_px=(TRAINING_PX, TRAINING_PX),
    count_range=(1, 9),
    diameter_range=(0.07, 0.6),
    crowd_count_range=(15, 25),
)
HELD_OUT_SEED: Final = 10_000_000
HELD_OUT_SCENES: Final = 400

RECIPE: Final[dict[str, Any]] = {
    "epochs": 9,
    "batch": 16,
    "optimizer": "AdamW",
    "lr0": 3e-3,
    "lrf": 0.02,
    "cos_lr": True,
    "warmup_epochs": 1.0,
    "warmup_bias_lr": 3e-3,
    "seed": 0,
    "amp": False,
}

AUGMENTATION: Final[dict[str, Any]] = {
    # Hue tells most classes apart, so it stays; the scenes themselves vary enough to do without mosaic.
    "hsv_h": 0.0,
    "hsv_s": 0.3,
    "hsv_v": 0.3,
    "translate": 0.1,
    "scale": 0.25,
    "fliplr": 0.5,
    "flipud": 0.5,
    "mosaic": 0.0,
    "erasing": 0.0,
}


def draw_dataset(folder: Path) -> Path:
    """Draw training and held-out scenes as an Ultralytics data set; returns its YAML file."""
    shutil.rmtree(folder, ignore_errors=True)
    _write_scenes(folder, "train", _draw_many(TRAINING_SEED, TRAINING_SCENES, TRAINING_STYLE))
    _write_scenes(folder, "val", _draw_many(HELD_OUT_SEED, HELD_OUT_SCENES, SceneStyle()))
    data = {"path": str(folder.resolve()), "train": "images/train", "val": "images/val"}
    file = folder / "data.yaml"
    file.write_text(yaml.safe_dump({**data, "names": dict(enumerate(CLASS_NAMES))}))
    return file


def train(data: Path, out: Path, threads: int = 2) -> Path:
    """Train and return the last checkpoint: half precision, optimizer stripped."""
    # Ultralytics would fetch a font, for plots that we do not draw.
    ultralytics.data.utils.check_font = lambda *_: None
    # It gives torch one thread fewer than there are cores, whatever was set before.
    ultralytics.utils.torch_utils.NUM_THREADS = threads
    YOLO(NETWORK, task="detect").train(
        data=str(data),
        imgsz=TRAINING_PX,
        close_mosaic=0,
        patience=0,
        val=False,
        plots=False,
        cache="ram",
        workers=0,
        device="cpu",
        project=str(out.resolve()),
        name="run",
        exist_ok=True,
        **RECIPE,
        **AUGMENTATION,
    )
    return out / "run" / "weights" / "last.pt"


def measure(weights: Path, data: Path) -> dict[str, float]:
    """COCO figures on the held-out scenes, in square batches as they will be served."""
    metrics = YOLO(weights).val(
        data=str(data),
        imgsz=INPUT_PX,
        rect=False,
        plots=False,
        workers=0,
        device="cpu",
        project=str(data.parent),
        name="measured",
        exist_ok=True,
    )
    return {"mAP50": float(metrics.box.map50), "mAP50-95": float(metrics.box.map)}


def _draw_many(first_seed: int, count: int, style: SceneStyle) -> Iterable[Scene]:
    return (draw_scene(first_seed + index, style) for index in range(count))


def _write_scenes(folder: Path, split: str, scenes: Iterable[Scene]) -> None:
    images, labels = folder / "images" / split, folder / "labels" / split
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    for index, scene in enumerate(scenes):
        picture_bgr = cv2.cvtColor(scene.picture_rgb, cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(images / f"{index:05d}.jpg"), picture_bgr, [cv2.IMWRITE_JPEG_QUALITY, 88])
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
    parser = argparse.ArgumentParser(description="Train the sample detector on drawn scenes.")
    parser.add_argument("--out", type=Path, default=Path(".cache/shapes"), help="folder for scenes and runs")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    data = draw_dataset(arguments.out / "data")
    began = time.monotonic()
    checkpoint = train(data, arguments.out, arguments.threads)
    minutes = (time.monotonic() - began) / 60
    figures = measure(checkpoint, data)
    print(f"{checkpoint}: {minutes:.1f} minutes, " + ", ".join(f"{k} {v:.4f}" for k, v in figures.items()))


if __name__ == "__main__":
    main()
