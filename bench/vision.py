"""Letterbox and NMS against Ultralytics' own, on the same arrays, in one run.

    .venv-export/bin/python -m bench.vision [--json FILE]

Both sides begin and end at the same point of a request:

- preprocess: decoded pictures to the batch that the network takes. Ultralytics' `BasePredictor.preprocess`
  makes float32 NCHW; ours is uint8 NHWC, because the graph that we serve permutes and normalises inside. That
  is most of the gain, and not free: it is paid in the graph. So the second row has LetterBox alone.
- postprocess: the network's output to boxes in picture pixels: `non_max_suppression` and `scale_boxes`, with
  torchvision's compiled NMS, which Ultralytics prefers; ours is `serving.vision.postprocess.detect`.

The outputs are the sample model's for the golden pictures. The two sides take turns, the figure is the ratio
of their medians, and their results are compared before anything is timed. OpenCV and torch get the same
number of threads on both sides: 1, and one a core (importing Ultralytics sets OpenCV's to 1).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import onnxruntime
import torch
import torchvision  # noqa: F401  # Ultralytics takes its NMS when it finds it imported
from numpy.typing import NDArray
from ultralytics.data.augment import LetterBox
from ultralytics.engine.predictor import BasePredictor
from ultralytics.utils.nms import non_max_suppression
from ultralytics.utils.ops import scale_boxes

from serving.domain.contract import ModelContract
from serving.domain.detections import Detections
from serving.domain.geometry import LetterboxGeometry
from serving.vision.letterbox import letterbox_batch
from serving.vision.postprocess import detect

REPOSITORY = Path(__file__).parents[1]
SAMPLE_MODEL = REPOSITORY / "model_repo/shapes"
GOLDEN_PICTURES = REPOSITORY / "tests/golden/pictures"
CONTRACT = ModelContract.parse((SAMPLE_MODEL / "metadata.json").read_bytes())
OPTIONS = CONTRACT.options()
INPUT_HW = (CONTRACT.input_size.height, CONTRACT.input_size.width)
FILL = CONTRACT.preprocessing.resize.fill_value
ROUNDS = 200
TARGET = 2.0

Picture = NDArray[np.uint8]

MIXED = (
    "landscape.jpg",
    "portrait.jpg",
    "model_sized.jpg",
    "exif_rotated.jpg",
    "grey.jpg",
    "progressive.jpg",
    "webp.webp",
    "overlap_one_class.jpg",
)
BATCHES: dict[str, tuple[str, ...]] = {
    "8 mixed pictures": MIXED,
    "8 pictures of 640x480": ("landscape.jpg",) * 8,
    "1 picture of 640x480": ("landscape.jpg",),
    "8 crowds of 77 objects": ("crowd.jpg",) * 8,
}


@dataclass(frozen=True)
class Comparison:
    """Milliseconds a batch, medians of interleaved rounds. `ratio`: how many times faster ours is."""

    stage: str
    batch: str
    threads: int
    ultralytics_ms: float
    ours_ms: float

    @property
    def ratio(self) -> float:
        return self.ultralytics_ms / self.ours_ms


def read_bgr(name: str) -> Picture:
    data = np.fromfile(GOLDEN_PICTURES / name, np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_COLOR).astype(np.uint8)


def ultralytics_preprocessor() -> Callable[[list[Picture]], torch.Tensor]:
    """`BasePredictor.preprocess` itself, on the few fields that it reads."""
    predictor = SimpleNamespace(
        device=torch.device("cpu"),
        imgsz=INPUT_HW,
        scale_fill=False,
        args=SimpleNamespace(rect=False),
        model=SimpleNamespace(fp16=False, format="onnx", stride=32),
    )
    predictor.pre_transform = lambda pictures: BasePredictor.pre_transform(predictor, pictures)
    return lambda pictures_bgr: BasePredictor.preprocess(predictor, pictures_bgr)


def our_preprocess(pictures_rgb: list[Picture]) -> tuple[Picture, list[LetterboxGeometry]]:
    batch_nhwc = np.empty((len(pictures_rgb), *INPUT_HW, 3), np.uint8)
    return batch_nhwc, letterbox_batch(pictures_rgb, out=batch_nhwc, fill_value=FILL, color_space="RGB")


def ultralytics_letterbox(pictures: list[Picture]) -> list[Picture]:
    letterbox = LetterBox(INPUT_HW)
    return [letterbox(image=picture) for picture in pictures]


def ultralytics_postprocess(output: torch.Tensor, shapes_hw: Sequence[tuple[int, int]]) -> list[torch.Tensor]:
    """As `DetectionPredictor.postprocess` and `construct_result` do it."""
    found = non_max_suppression(
        output, OPTIONS.confidence_threshold, OPTIONS.iou_threshold, max_det=OPTIONS.max_detections
    )
    for rows, shape_hw in zip(found, shapes_hw, strict=True):
        rows[:, :4] = scale_boxes(INPUT_HW, rows[:, :4], shape_hw)
    return list(found)


def require_same_batches(theirs: torch.Tensor, ours: Picture) -> None:
    expected = ours.transpose(0, 3, 1, 2).astype(np.float32) / 255
    np.testing.assert_allclose(theirs.numpy(), expected, rtol=0, atol=1e-6)


def require_same_boxes(theirs: list[torch.Tensor], ours: list[Detections]) -> None:
    for rows, found in zip(theirs, ours, strict=True):
        np.testing.assert_array_equal(rows[:, 4].numpy(), found.confidence)
        np.testing.assert_array_equal(rows[:, 5].numpy(), found.class_id)
        np.testing.assert_allclose(rows[:, :4].numpy(), found.xyxy, rtol=0, atol=1e-3)


def interleaved_medians_ms(*sides: Callable[[], object]) -> list[float]:
    seconds: list[list[float]] = [[] for _ in sides]
    for _ in range(ROUNDS):
        for side, durations in zip(sides, seconds, strict=True):
            begin = time.perf_counter()
            side()
            durations.append(time.perf_counter() - begin)
    return [1000 * statistics.median(durations) for durations in seconds]


def compare_batch(
    name: str, pictures_bgr: list[Picture], model: onnxruntime.InferenceSession, threads: int
) -> Iterator[Comparison]:
    pictures_rgb = [np.ascontiguousarray(picture[..., ::-1]) for picture in pictures_bgr]
    preprocess = ultralytics_preprocessor()
    batch_nhwc, geometries = our_preprocess(pictures_rgb)
    require_same_batches(preprocess(pictures_bgr), batch_nhwc)

    def compared(stage: str, theirs: Callable[[], object], ours: Callable[[], object]) -> Comparison:
        return Comparison(stage, name, threads, *interleaved_medians_ms(theirs, ours))

    yield compared("preprocess", lambda: preprocess(pictures_bgr), lambda: our_preprocess(pictures_rgb))
    yield compared(
        "LetterBox alone", lambda: ultralytics_letterbox(pictures_rgb), lambda: our_preprocess(pictures_rgb)
    )

    output = np.asarray(model.run(None, {CONTRACT.input.name: batch_nhwc})[0], np.float32)
    tensor = torch.from_numpy(output)
    shapes_hw = [(picture.shape[0], picture.shape[1]) for picture in pictures_bgr]
    options = [OPTIONS] * len(pictures_bgr)
    require_same_boxes(
        ultralytics_postprocess(tensor, shapes_hw), detect(CONTRACT, output, options, geometries)
    )
    yield compared(
        "postprocess",
        lambda: ultralytics_postprocess(tensor, shapes_hw),
        lambda: detect(CONTRACT, output, options, geometries),
    )


def compare_all() -> list[Comparison]:
    model = onnxruntime.InferenceSession(SAMPLE_MODEL / "1/model.onnx", providers=["CPUExecutionProvider"])
    pictures = {name: read_bgr(name) for names in BATCHES.values() for name in names}
    comparisons: list[Comparison] = []
    for threads in sorted({1, os.cpu_count() or 1}):
        cv2.setNumThreads(threads)
        torch.set_num_threads(threads)
        for name, picture_names in BATCHES.items():
            batch = [pictures[picture_name] for picture_name in picture_names]
            comparisons += compare_batch(name, batch, model, threads)
    return comparisons


def print_table(comparisons: list[Comparison]) -> None:
    print(f"{'stage':<16} {'batch':<24} {'threads':>7} {'Ultralytics':>12} {'ours':>9} {'ratio':>7}")
    for one in comparisons:
        print(
            f"{one.stage:<16} {one.batch:<24} {one.threads:>7} {one.ultralytics_ms:>9.3f} ms"
            f" {one.ours_ms:>6.3f} ms {one.ratio:>6.2f}x"
        )


def headline(comparisons: list[Comparison]) -> dict[str, float]:
    """The smaller ratio of the mixed batch over the thread counts."""
    return {
        f"{stage.replace(' ', '_').lower()}_over_ultralytics": min(
            one.ratio for one in comparisons if one.stage == stage and one.batch == "8 mixed pictures"
        )
        for stage in ("preprocess", "LetterBox alone", "postprocess")
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()

    comparisons = compare_all()
    print_table(comparisons)
    figures: dict[str, Any] = dict(headline(comparisons))
    for name, ratio in figures.items():
        print(f"{name}: {ratio:.2f} (target {TARGET:.1f}, {'met' if ratio >= TARGET else 'missed'})")
    print(
        "LetterBox alone is nine tenths the same cv2.resize, which equal pixels ask for: it cannot reach 2."
    )
    if arguments.json:
        figures["comparisons"] = [asdict(one) | {"ratio": one.ratio} for one in comparisons]
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
