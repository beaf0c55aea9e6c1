"""Small networks of every family and task, and checkpoints of them, made here: no weights are downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ultralytics.nn import tasks

SUFFIXES = {
    "detection": ("", tasks.DetectionModel),
    "classification": ("-cls", tasks.ClassificationModel),
    "segmentation": ("-seg", tasks.SegmentationModel),
    "pose": ("-pose", tasks.PoseModel),
    "obb": ("-obb", tasks.OBBModel),
}
FAMILIES = ("yolov8n", "yolo11n", "yolo26n")
CLASS_NAMES = ("cat", "dog", "fox")
TRAINED_PX = 64


def make_network(family: str, task_type: str) -> Any:
    """With three classes, its numbers drawn at random and its statistics taken from random pictures.

    As networks are initialised, all scores are nearly 0, and a graph that lost its weights would pass for
    right; drawn without statistics, they blow every rounding up.
    """
    suffix, kind = SUFFIXES[task_type]
    generator = torch.Generator().manual_seed(FAMILIES.index(family))
    network = kind(f"{family}{suffix}.yaml", nc=len(CLASS_NAMES), verbose=False)
    network.names = dict(enumerate(CLASS_NAMES))
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None  # the mean over all that follows
            layer.weight.data.uniform_(0.7, 1.3, generator=generator)
            layer.bias.data.normal_(0, 0.3, generator=generator)
        elif isinstance(layer, torch.nn.Conv2d | torch.nn.Linear) and layer.weight.requires_grad:
            fan_in = layer.weight[0].numel()
            layer.weight.data.normal_(0, fan_in**-0.5, generator=generator)
            if layer.bias is not None:
                layer.bias.data.normal_(0, 0.5, generator=generator)
    with torch.no_grad():
        pictures = draw_pictures(8, (TRAINED_PX, TRAINED_PX), seed=0)
        network.train()(torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255)
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 0.03
            layer.running_var.clamp_(min=0.3)  # what hardly varied would be blown up in other pictures
    return network.eval()


def draw_pictures(count: int, size_wh: tuple[int, int], seed: int) -> NDArray[np.uint8]:
    """RGB (count, height, width, 3): noise over blocks of colour, something for every layer to see."""
    width, height = size_wh
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (count, height // 16, width // 16, 3)).repeat(16, 1).repeat(16, 2)
    return (blocks // 2 + rng.integers(0, 128, blocks.shape)).astype(np.uint8)


def save_checkpoint(path: Path, network: Any, **beside: Any) -> Path:
    content = {
        "model": network,
        "ema": None,
        "train_args": {"imgsz": TRAINED_PX},
        "version": "8.4.0",
        **beside,
    }
    torch.save(content, path)
    return path
