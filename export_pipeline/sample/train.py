"""Train the sample detector from nothing and say how good it is.

    python -m export_pipeline.sample.train --out .cache/shapes    # leaves .cache/shapes/shapes.pt

Needs the `export` extra (Ultralytics, torch); about ten minutes on two cores. It trains on scenes of 192 px
whose shapes are as large as they are at 320 px: a third of the work a picture, and a convolutional network
does not mind. It is measured on whole scenes at 320 px.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import time
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("YOLO_AUTOINSTALL", "false")  # Ultralytics would install packages behind our back.

import torch
import ultralytics
import ultralytics.data.utils
import ultralytics.utils.torch_utils
from ultralytics import YOLO

from export_pipeline.sample import CHECKPOINT, INPUT_PX
from export_pipeline.sample.dataset import HELD_OUT_SEED, describe, draw_many, write_scenes
from export_pipeline.sample.scenes import SceneStyle

NETWORK: Final = CHECKPOINT.with_name("shapes.yaml")
TRAINING_PX: Final = 192
TRAINING_SEED: Final = 20_000
TRAINING_SCENES: Final = 3000
TRAINING_STYLE: Final = SceneStyle(
    side_range_px=(TRAINING_PX, TRAINING_PX),
    count_range=(1, 9),
    diameter_range=(0.07, 0.6),
    crowd_count_range=(15, 25),
)
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
    write_scenes(folder, "train", draw_many(TRAINING_SEED, TRAINING_SCENES, TRAINING_STYLE))
    write_scenes(folder, "val", draw_many(HELD_OUT_SEED, HELD_OUT_SCENES, SceneStyle()))
    return describe(folder, {"path": str(folder.resolve()), "train": "images/train", "val": "images/val"})


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


def tidy_checkpoint(source: Path) -> bytes:
    """The checkpoint in half precision with nothing of the training run but its network and classes."""
    network = YOLO(source).model.half()
    network.args = {"task": "detect", "imgsz": INPUT_PX}
    network.pt_path = CHECKPOINT.name
    network.yaml["yaml_file"] = NETWORK.name
    for parameter in network.parameters():
        parameter.requires_grad = False
    buffer = io.BytesIO()
    torch.save(
        {"epoch": -1, "model": network, "train_args": network.args, "version": ultralytics.__version__},
        buffer,
    )
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the sample detector on drawn scenes.")
    parser.add_argument("--out", type=Path, default=Path(".cache/shapes"), help="folder for scenes and runs")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    data = draw_dataset(arguments.out / "data")
    began = time.monotonic()
    checkpoint = arguments.out / CHECKPOINT.name
    checkpoint.write_bytes(tidy_checkpoint(train(data, arguments.out, arguments.threads)))
    minutes = (time.monotonic() - began) / 60
    figures = measure(checkpoint, data)
    print(f"{checkpoint}: {minutes:.1f} minutes, " + ", ".join(f"{k} {v:.4f}" for k, v in figures.items()))


if __name__ == "__main__":
    main()
