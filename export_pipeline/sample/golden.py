"""Golden pictures, and what Ultralytics' own `predict` sees in them.

    python -m export_pipeline.sample.golden           # predictions for the committed pictures
    python -m export_pipeline.sample.golden --draw    # draw the pictures again first

One picture for each way a picture can be stored and each thing that can be in it. Their seeds are searched so
that no answer hangs on rounding: a slightly different threshold or score gives the same boxes. The exported
model is run over the same pictures, with the plainest post-processing, and has to agree.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import itertools
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("YOLO_AUTOINSTALL", "false")  # Ultralytics would install packages behind our back.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime would report to its maker.

import cv2
import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
import ultralytics
from PIL import Image
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionPredictor

from export_pipeline.sample import CHECKPOINT, INPUT_PX, REPOSITORY
from export_pipeline.sample.scenes import (
    CLASS_NAMES,
    PictureU8,
    SceneStyle,
    Shape,
    draw_background,
    draw_scene,
    draw_shapes,
    photograph,
)

GOLDEN: Final = Path(__file__).parents[2] / "tests" / "golden"
SAMPLE: Final = REPOSITORY / "shapes" / "sample.jpg"
FIRST_SEED: Final = 30_000_000
SETTINGS: Final[dict[str, Any]] = {
    "imgsz": INPUT_PX,
    "conf": 0.25,
    "iou": 0.45,
    "max_det": 300,
    "rect": False,
    "augment": False,
    "agnostic_nms": False,
}
CONFIDENCE_MARGIN: Final = 0.003
IOU_MARGIN: Final = 0.01
SCORE_NOISE: Final = 3e-4
USUAL_RGB: Final = ((214, 40, 40), (37, 88, 214), (38, 166, 62), (240, 200, 32))
"""A usual colour of each class."""

Floats = npt.NDArray[np.float32]
Encoder = Callable[[PictureU8], bytes]
"""From an RGB picture to the bytes of a file."""


@dataclass(frozen=True)
class Detections:
    """Rows sorted by confidence: `xyxy` float32 [n, 4] in pixels, `confidence` and `class_id` [n]."""

    xyxy: Floats
    confidence: Floats
    class_id: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Golden:
    """How one picture is drawn (from a seed) and stored, and what must be found in it."""

    name: str
    draw: Callable[[int], PictureU8]
    encode: Encoder
    wanted: Callable[[Detections], bool]


# Drawing


def _scene(size_wh: tuple[int, int], **style: Any) -> Callable[[int], PictureU8]:
    usual = SceneStyle(
        count_range=(4, 9), empty_probability=0, crowd_probability=0, grey_probability=0, max_overlap=0.1
    )
    return lambda seed: draw_scene(seed, replace(usual, **style), size_wh).picture_rgb


def _plain_scene(size_wh: tuple[int, int], diameter: float, count: int) -> Callable[[int], PictureU8]:
    """Usual shapes side by side on a smooth gradient: few bytes even without loss."""

    def draw(seed: int) -> PictureU8:
        rng = np.random.default_rng(seed)
        width, height = size_wh
        ramp = np.linspace(60, 150, width).round()[None, :, None] + np.zeros((height, 1, 3))
        centres = (np.arange(count) + 0.5) * width / count
        shapes = [
            _usual_shape(int(rng.integers(4)), (x, height / 2), diameter * max(size_wh), rng.uniform(0, 6.28))
            for x in centres
        ]
        return draw_shapes(ramp.astype(np.uint8), shapes).picture_rgb

    return draw


def _overlapping(class_ids: tuple[int, int]) -> Callable[[int], PictureU8]:
    """Two pairs of shapes of these classes, the second of each pair over the first."""

    def draw(seed: int) -> PictureU8:
        rng = np.random.default_rng(seed)
        shapes = []
        for x, y in ((150.0, 130.0), (320.0, 330.0)):
            diameter_px = rng.uniform(90, 140)
            for class_id, shift in zip(class_ids, (0.0, rng.uniform(0.5, 0.7)), strict=True):
                centre_xy = (x + shift * diameter_px, y + shift * 0.3 * diameter_px)
                shapes.append(_usual_shape(class_id, centre_xy, diameter_px, rng.uniform(0, 6.28)))
        return draw_shapes(draw_background(rng, (480, 440)), shapes).picture_rgb

    return draw


def _usual_shape(class_id: int, centre_xy: tuple[float, float], diameter_px: float, turn: float) -> Shape:
    return Shape(class_id, centre_xy, diameter_px, turn, fill_rgb=USUAL_RGB[class_id])


def _large(seed: int) -> PictureU8:
    """4160x3120, as a telephone takes it, but smooth: enlarged, so that it stays small in bytes."""
    return _enlarged(_scene((640, 480))(seed), (4160, 3120))


def _enlarged(picture_rgb: PictureU8, size_wh: tuple[int, int]) -> PictureU8:
    return np.asarray(cv2.resize(picture_rgb, size_wh, interpolation=cv2.INTER_CUBIC), np.uint8)


def draw_sample() -> PictureU8:
    """The quick start's picture, 640x480: two of each class around a cup of coffee."""
    places = (
        (0, (95, 90), 96, 0.0),
        (1, (245, 70), 76, 0.3),
        (2, (400, 80), 96, 0.55),
        (3, (555, 95), 120, 0.25),
        (3, (80, 260), 84, 0.7),
        (2, (90, 400), 110, 1.7),
        (1, (560, 270), 92, 0.95),
        (0, (545, 410), 72, 0.0),
    )
    four_to_three = photograph("coffee")[:, 33:566]
    background_rgb = _enlarged(four_to_three, (640, 480))
    return draw_shapes(background_rgb, [_usual_shape(*place) for place in places]).picture_rgb


# Storing


def _pillow(**options: Any) -> Encoder:
    return lambda rgb: _saved(Image.fromarray(rgb), **options)


def _saved(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


JPEG: Final = _pillow(format="JPEG", quality=85)


def _in_mode(mode: str) -> Encoder:
    return lambda rgb: _saved(Image.fromarray(rgb).convert(mode), format="JPEG", quality=85)


def _with_alpha(rgb: PictureU8) -> bytes:
    """PNG, opaque on the left and half transparent on the right."""
    alpha = np.linspace(255, 128, rgb.shape[1]).astype(np.uint8)[None, :, None]
    rgba = np.concatenate([rgb, np.broadcast_to(alpha, (*rgb.shape[:2], 1))], axis=2)
    return _saved(Image.fromarray(rgba), format="PNG", optimize=True)


def _sixteen_bit(rgb: PictureU8) -> bytes:
    done, encoded = cv2.imencode(".png", rgb[..., ::-1].astype(np.uint16) * 257)
    if not done:
        raise RuntimeError("OpenCV did not write the PNG")
    return encoded.tobytes()


def _lying_on_its_side(rgb: PictureU8) -> bytes:
    """JPEG whose pixels are turned a quarter left, and whose EXIF orientation, 6, turns them back."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return _saved(Image.fromarray(np.rot90(rgb).copy()), format="JPEG", quality=85, exif=exif)


# What is wanted


def _at_least(count: int) -> Callable[[Detections], bool]:
    return lambda found: len(found.class_id) >= count


def _exactly(class_ids: tuple[int, ...]) -> Callable[[Detections], bool]:
    return lambda found: sorted(found.class_id.tolist()) == sorted(class_ids)


GOLDENS: Final = (
    Golden("landscape.jpg", _scene((640, 480)), JPEG, _at_least(4)),
    Golden("portrait.jpg", _scene((360, 640)), JPEG, _at_least(4)),
    Golden("model_sized.jpg", _scene((320, 320)), JPEG, _at_least(4)),
    Golden("odd_size.jpg", _scene((333, 517)), JPEG, _at_least(4)),
    Golden("tiny.png", _plain_scene((28, 23), 0.4, 1), _pillow(format="PNG"), _at_least(1)),
    Golden("large.jpg", _large, _pillow(format="JPEG", quality=25), _at_least(4)),
    Golden("grey.jpg", _scene((400, 300)), _in_mode("L"), _at_least(3)),
    Golden("alpha.png", _plain_scene((300, 200), 0.25, 3), _with_alpha, _at_least(3)),
    Golden("cmyk.jpg", _scene((320, 240)), _in_mode("CMYK"), _at_least(3)),
    Golden("sixteen_bit.png", _plain_scene((240, 160), 0.25, 3), _sixteen_bit, _at_least(3)),
    Golden("exif_rotated.jpg", _scene((480, 360)), _lying_on_its_side, _at_least(3)),
    Golden(
        "progressive.jpg",
        _scene((400, 300)),
        _pillow(format="JPEG", quality=85, progressive=True),
        _at_least(3),
    ),
    Golden("webp.webp", _scene((400, 300)), _pillow(format="WEBP", quality=80), _at_least(3)),
    Golden("bitmap.bmp", _plain_scene((128, 96), 0.3, 2), _pillow(format="BMP"), _at_least(2)),
    Golden("no_object.jpg", _scene((480, 360), count_range=(0, 0)), JPEG, _exactly(())),
    Golden("crowd.jpg", _scene((640, 640), count_range=(75, 75), max_overlap=0.0), JPEG, _at_least(55)),
    Golden("overlap_one_class.jpg", _overlapping((0, 0)), JPEG, _exactly((0, 0, 0, 0))),
    Golden("overlap_two_classes.jpg", _overlapping((1, 3)), JPEG, _exactly((1, 1, 3, 3))),
)


# The exported model, with the plainest code around it


def letterbox(picture_rgb: PictureU8) -> tuple[PictureU8, tuple[float, float], tuple[int, int]]:
    """The picture centred on 320x320 of grey 114; also its scale in x and y and the (left, top) padding."""
    height, width = picture_rgb.shape[:2]
    scale = min(INPUT_PX / height, INPUT_PX / width)
    new_w, new_h = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = round((INPUT_PX - new_w) / 2 - 0.1), round((INPUT_PX - new_h) / 2 - 0.1)
    square = np.full((INPUT_PX, INPUT_PX, 3), 114, np.uint8)
    square[top : top + new_h, left : left + new_w] = cv2.resize(
        picture_rgb, (new_w, new_h), interpolation=cv2.INTER_LINEAR
    )
    # Each side was rounded for itself, so each has a scale of its own.
    return square, (new_w / width, new_h / height), (left, top)


def suppress(rows: Floats, conf: float, iou: float) -> Detections:
    """From raw rows [8, anchors] to detections on the model's square, one class after another."""
    class_id, confidence = rows[4:].argmax(axis=0), rows[4:].max(axis=0)
    centre, half = rows[:2].T, rows[2:4].T / 2
    xyxy = np.concatenate([centre - half, centre + half], axis=1)
    kept: list[int] = []
    for candidate in np.argsort(-confidence, kind="stable")[: int((confidence > conf).sum())]:
        rivals = [index for index in kept if class_id[index] == class_id[candidate]]
        if not rivals or ious(xyxy[[candidate]], xyxy[rivals]).max() <= iou:
            kept.append(int(candidate))
    kept = kept[: SETTINGS["max_det"]]
    return Detections(xyxy[kept], confidence[kept], class_id[kept])


def ious(a_xyxy: Floats, b_xyxy: Floats) -> Floats:
    """Intersection over union of every pair: float32 [a, b]."""
    low = np.maximum(a_xyxy[:, None, :2], b_xyxy[None, :, :2])
    high = np.minimum(a_xyxy[:, None, 2:], b_xyxy[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (a_xyxy, b_xyxy)]
    overlap: Floats = shared / (areas[0][:, None] + areas[1][None, :] - shared)
    return overlap


class ExportedModel:
    def __init__(self, path: Path) -> None:
        self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def rows(self, picture_rgb: PictureU8) -> Floats:
        """Raw float32 [8, 2100] for one picture."""
        square, _, _ = letterbox(picture_rgb)
        rows: Floats = self._session.run(["predictions"], {"images": square[None]})[0][0]
        return rows

    def detect(self, picture_rgb: PictureU8) -> Detections:
        """Boxes in pixels of the picture, clipped to it."""
        _, scale_xy, left_top = letterbox(picture_rgb)
        found = suppress(self.rows(picture_rgb), SETTINGS["conf"], SETTINGS["iou"])
        height, width = picture_rgb.shape[:2]
        xyxy = (found.xyxy - np.tile(left_top, 2)) / np.tile(scale_xy, 2)
        return replace(found, xyxy=np.clip(xyxy, 0, [width, height, width, height]).astype(np.float32))


def is_settled(rows: Floats) -> bool:
    """Whether thresholds and scores may move a little without another answer."""
    conf, iou = SETTINGS["conf"], SETTINGS["iou"]
    usual = suppress(rows, conf, iou)
    wiggles = itertools.product((-CONFIDENCE_MARGIN, CONFIDENCE_MARGIN), (-IOU_MARGIN, IOU_MARGIN))
    if not all(same_answer(usual, suppress(rows, conf + c, iou + i)) for c, i in wiggles):
        return False
    rng = np.random.default_rng(0)
    for _ in range(8):
        noisy = rows.copy()
        noisy[4:] += rng.uniform(-SCORE_NOISE, SCORE_NOISE, noisy[4:].shape).astype(np.float32)
        if not same_answer(usual, suppress(noisy, conf, iou)):
            return False
    return True


def same_answer(a: Detections, b: Detections) -> bool:
    """Same number, and for each detection one of the same class in the same place (IoU 0.99)."""
    if len(a.class_id) != len(b.class_id):
        return False
    if not len(a.class_id):
        return True
    overlap = np.where(a.class_id[:, None] == b.class_id[None, :], ious(a.xyxy, b.xyxy), 0)
    return bool((overlap.max(axis=1) >= 0.99).all() and (overlap.max(axis=0) >= 0.99).all())


# Drawing and predicting


def draw_golden(golden: Golden, first_seed: int, model: ExportedModel) -> tuple[int, bytes]:
    """The first seed, and its file, whose picture holds what is wanted and whose answer is settled."""
    for seed in range(first_seed, first_seed + 300):
        content = golden.encode(golden.draw(seed))
        rows = model.rows(decode(content))
        if golden.wanted(suppress(rows, SETTINGS["conf"], SETTINGS["iou"])) and is_settled(rows):
            return seed, content
    raise RuntimeError(f"no seed gives a settled {golden.name}")


def decode(content: bytes) -> PictureU8:
    """As Ultralytics decodes a file: OpenCV, eight bits, three channels, EXIF orientation applied."""
    picture_bgr = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    if picture_bgr is None:
        raise ValueError("not a picture that OpenCV decodes")
    return np.ascontiguousarray(picture_bgr[..., ::-1])


class SquarePredictor(DetectionPredictor):  # type: ignore[misc]  # Ultralytics ships no types.
    """Ultralytics' predictor, refusing a rectangular letterbox: the exported model knows only the square."""

    def preprocess(self, im: Any) -> torch.Tensor:
        batch: torch.Tensor = super().preprocess(im)
        if batch.shape[2:] != (INPUT_PX, INPUT_PX):
            raise RuntimeError(f"letterboxed to {tuple(batch.shape[2:])}")
        return batch


def predict(model: YOLO, picture: Path) -> dict[str, Any]:
    """What Ultralytics finds, as the golden file states it."""
    (result,) = model.predict(picture, predictor=SquarePredictor, device="cpu", verbose=False, **SETTINGS)
    height, width = result.orig_shape
    rows = sorted(result.boxes.data.tolist(), key=lambda row: -row[4])
    predictions = [
        {
            "class": CLASS_NAMES[int(class_id)],
            "class_id": int(class_id),
            "confidence": round(confidence, 4),
            "bbox": [round(value, 4) for value in xyxy],
        }
        for *xyxy, confidence, class_id in rows
    ]
    return {"width": width, "height": height, "predictions": predictions}


def largest_difference(expected: dict[str, Any], found: Detections) -> tuple[float, float]:
    """Largest gap in any box coordinate (pixels) and in any confidence, after matching by place."""
    wanted = expected["predictions"]
    if len(wanted) != len(found.class_id):
        raise RuntimeError(f"{len(found.class_id)} detections, {len(wanted)} expected")
    if not wanted:
        return 0.0, 0.0
    boxes = np.array([item["bbox"] for item in wanted], np.float32)
    partner = ious(boxes, found.xyxy).argmax(axis=1)
    if [item["class_id"] for item in wanted] != found.class_id[partner].tolist():
        raise RuntimeError("other classes than expected")
    confidence = np.array([item["confidence"] for item in wanted])
    return (
        float(np.abs(boxes - found.xyxy[partner]).max()),
        float(np.abs(confidence - found.confidence[partner]).max()),
    )


def write_predictions(pictures: Path, file: Path, exported: ExportedModel) -> None:
    checkpoint = YOLO(CHECKPOINT)
    answers = {}
    for picture in sorted(pictures.iterdir()):
        content = picture.read_bytes()
        answer = answers[picture.name] = predict(checkpoint, picture)
        pixels, confidence = largest_difference(answer, exported.detect(decode(content)))
        settled = is_settled(exported.rows(decode(content)))
        print(
            f"{picture.name:26} {len(content) / 1000:7.1f} kB {len(answer['predictions']):3} boxes  "
            f"exported differs by {pixels:.4f} px, {confidence:.5f}{'' if settled else '  NOT SETTLED'}"
        )
    record = {
        "ultralytics": ultralytics.__version__,
        "torch": torch.__version__.split("+")[0],
        "checkpoint_sha256": hashlib.sha256(CHECKPOINT.read_bytes()).hexdigest(),
        "settings": SETTINGS,
        "pictures": answers,
    }
    file.write_text(_one_prediction_a_line(record))


def _one_prediction_a_line(record: dict[str, Any]) -> str:
    """JSON that is short and still shows in a diff which box moved."""
    pictures = record["pictures"]
    lines = [json.dumps({**record, "pictures": None}, indent=1).removesuffix(": null\n}") + ": {"]
    for index, (name, answer) in enumerate(pictures.items()):
        rows = ",\n".join(f"   {json.dumps(row)}" for row in answer["predictions"])
        size = f'"width": {answer["width"]}, "height": {answer["height"]}'
        head = f'  {json.dumps(name)}: {{{size}, "predictions": ['
        lines.append(head + (f"\n{rows}]}}" if rows else "]}") + ("," if index + 1 < len(pictures) else ""))
    text = "\n".join([*lines, " }\n}\n"])
    if json.loads(text) != record:
        raise RuntimeError("the golden file does not read back as what was written")
    return text


def draw_pictures(folder: Path, model: ExportedModel) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, golden in enumerate(GOLDENS):
        seed, content = draw_golden(golden, FIRST_SEED + 1000 * index, model)
        (folder / golden.name).write_bytes(content)
        print(f"{golden.name}: seed {seed}")
    SAMPLE.write_bytes(_pillow(format="JPEG", quality=90)(draw_sample()))


def main() -> None:
    parser = argparse.ArgumentParser(description="Golden pictures and predictions of the sample detector.")
    parser.add_argument("--draw", action="store_true", help="draw the pictures again first")
    parser.add_argument("--out", type=Path, default=GOLDEN)
    arguments = parser.parse_args()
    exported = ExportedModel(REPOSITORY / "shapes" / "1" / "model.onnx")
    if arguments.draw:
        draw_pictures(arguments.out / "pictures", exported)
    write_predictions(arguments.out / "pictures", arguments.out / "predictions.json", exported)
    shown = exported.detect(decode(SAMPLE.read_bytes()))
    print(
        f"{SAMPLE.name}: {len(shown.class_id)} of 8 shapes, confidence {shown.confidence.min():.2f} or more"
    )


if __name__ == "__main__":
    main()
