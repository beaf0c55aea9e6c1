"""Put the sample detector into the Triton model repository.

    python -m export_pipeline.sample.publish    # the committed checkpoint again
    python -m export_pipeline.sample.publish --checkpoint .cache/shapes/run/weights/last.pt    # a new one

Writes `shapes.pt` beside this file, `model_repo/shapes/1/model.onnx` and `model_repo/shapes/metadata.json`;
the same checkpoint gives the same bytes. It knows this one model: no options, no validation.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("YOLO_AUTOINSTALL", "false")  # Ultralytics would install packages behind our back.

import onnx
import torch
import ultralytics
from ultralytics import YOLO

from export_pipeline.sample.scenes import CLASS_NAMES

HERE: Final = Path(__file__).parent
CHECKPOINT: Final = HERE / "shapes.pt"
REPOSITORY: Final = HERE.parents[1] / "model_repo"
INPUT_PX: Final = 320
ANCHORS: Final = sum((INPUT_PX // stride) ** 2 for stride in (8, 16, 32))
ROWS: Final = 4 + len(CLASS_NAMES)
OPSET: Final = 17


class ServableDetector(torch.nn.Module):  # type: ignore[misc]  # torch lives in the export environment only.
    """The network with the pixels' normalisation in front, so that callers send the bytes they decoded."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 RGB [batch, 320, 320, 3] to float32 [batch, 8, 2100]: cx, cy, w, h (pixels), 4 scores 0-1."""
        predictions: torch.Tensor = self.network(images.permute(0, 3, 1, 2).float() / 255)
        return predictions


def tidy_checkpoint(source: Path) -> bytes:
    """The checkpoint in half precision with nothing of the training run but its network and classes."""
    network = YOLO(source).model.half()
    network.args = {"task": "detect", "imgsz": INPUT_PX}
    network.pt_path = CHECKPOINT.name
    network.yaml["yaml_file"] = "shapes.yaml"
    for parameter in network.parameters():
        parameter.requires_grad = False
    buffer = io.BytesIO()
    torch.save(
        {"epoch": -1, "model": network, "train_args": network.args, "version": ultralytics.__version__},
        buffer,
    )
    return buffer.getvalue()


def load_servable(checkpoint: Path) -> ServableDetector:
    """The detector in single precision, fused, its head set to give the decoded rows alone."""
    network = YOLO(checkpoint).model.float().eval().fuse(verbose=False)
    head = network.model[-1]
    head.export, head.format = True, "onnx"
    detector: ServableDetector = ServableDetector(network).eval()
    return detector


def export_onnx(detector: ServableDetector) -> bytes:
    """ONNX with a dynamic batch, its dimensions and file version those that older servers still accept."""
    buffer = io.BytesIO()
    # Batch 2: a batch of one would let tracing take it for a constant.
    images = torch.zeros(2, INPUT_PX, INPUT_PX, 3, dtype=torch.uint8)
    detector(images)  # The head keeps its anchors of this size, so that they are traced as constants.
    torch.onnx.export(
        detector,
        (images,),
        buffer,
        dynamo=False,
        opset_version=OPSET,
        input_names=["images"],
        output_names=["predictions"],
        dynamic_axes={"images": {0: "batch"}, "predictions": {0: "batch"}},
    )
    model = onnx.load_from_string(buffer.getvalue())
    # Tracing loses the sizes of the output, and Triton compares them with config.pbtxt.
    shape = model.graph.output[0].type.tensor_type.shape
    for dimension, size in zip(shape.dim[1:], (ROWS, ANCHORS), strict=True):
        dimension.dim_value = size
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    return content


def metadata(checkpoint_sha256: str) -> dict[str, Any]:
    """What `model_repo/metadata.schema.json` asks for."""
    return {
        "schema_version": "1.0",
        "model_info": {
            "framework": "ultralytics",
            "task_type": "detection",
            "model_name": "shapes",
            "export_format": "onnx",
            "version": "1",
            "source_checkpoint_sha256": checkpoint_sha256,
        },
        "preprocessing": {
            "resize": {
                "method": "letterbox",
                "size": [INPUT_PX, INPUT_PX],
                "fill_value": 114,
                "stride": 32,
                "interpolation": "bilinear",
            },
            "normalize": {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0], "scale": 1 / 255},
            "format": {
                "input_layout": "NHWC",
                "output_layout": "NCHW",
                "color_space": "RGB",
                "dtype": "uint8",
            },
            "embedded": True,
        },
        "postprocessing": {
            "nms": {
                "enabled": True,
                "embedded": False,
                "iou_threshold": 0.45,
                "confidence_threshold": 0.25,
                "max_detections": 300,
                "class_agnostic": False,
            },
            "output_format": {"head": "yolo_raw", "bbox_format": "cxcywh", "coordinates": "pixels"},
        },
        "input_spec": [
            {
                "name": "images",
                "shape": [-1, INPUT_PX, INPUT_PX, 3],
                "dtype": "uint8",
                "layout": "NHWC",
                "description": "Letterboxed RGB pictures, 0-255.",
            }
        ],
        "output_spec": [
            {
                "name": "predictions",
                "shape": [-1, ROWS, ANCHORS],
                "dtype": "float32",
                "layout": "NCA",
                "description": "For each anchor: cx, cy, w, h in input pixels, then one score 0-1 per class.",
            }
        ],
        "classes": [{"id": index, "name": name} for index, name in enumerate(CLASS_NAMES)],
        "runtime_wrappers": [],
    }


def publish(source: Path, repository: Path) -> None:
    """Write checkpoint, model and metadata, each in one step: a server may be reading the old ones."""
    if source.resolve() != CHECKPOINT:
        _write(CHECKPOINT, tidy_checkpoint(source))
    entry = repository / "shapes"
    sha256 = hashlib.sha256(CHECKPOINT.read_bytes()).hexdigest()
    _write(entry / "1" / "model.onnx", export_onnx(load_servable(CHECKPOINT)))
    _write(entry / "metadata.json", (json.dumps(metadata(sha256), indent=2) + "\n").encode())


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # A dot first: Triton's poll and git's eyes pass over it.
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Publish the sample detector for Triton.")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--repository", type=Path, default=REPOSITORY)
    arguments = parser.parse_args()
    publish(arguments.checkpoint, arguments.repository)


if __name__ == "__main__":
    main()
