"""The oracle: letterbox, its inverse, crop, heads and NMS as slowly and obviously as they can be written.

Nothing here is fast, and nothing is shared with what it judges. Numbers are Python floats, pictures are numpy
arrays, boxes are tuples; only the resampling of pixels is OpenCV's and Pillow's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Box = tuple[float, float, float, float]
"""x_min, y_min, x_max, y_max."""


@dataclass(frozen=True)
class Detection:
    """`box` in input pixels, or in picture pixels once it went through `unletterbox_box`."""

    box: Box
    confidence: float
    class_id: int


@dataclass(frozen=True)
class ScoredClass:
    class_id: int
    confidence: float


@dataclass(frozen=True)
class Placement:
    """Where the resized picture lies in the input, in pixels."""

    left: int
    top: int
    width: int
    height: int


def place(picture_width: int, picture_height: int, input_width: int, input_height: int) -> Placement:
    """The largest centred rectangle of the picture's shape; of an odd border the larger half comes last."""
    if picture_width * input_height >= picture_height * input_width:
        ratio = input_width / picture_width
    else:
        ratio = input_height / picture_height
    width = max(1, round(picture_width * ratio))
    height = max(1, round(picture_height * ratio))
    return Placement((input_width - width) // 2, (input_height - height) // 2, width, height)


def letterbox(
    picture: NDArray[np.uint8], input_width: int, input_height: int, fill_value: int
) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 to (input_height, input_width, 3) uint8; the channels keep their order."""
    picture_height, picture_width, _ = picture.shape
    placement = place(picture_width, picture_height, input_width, input_height)
    resized = cv2.resize(picture, (placement.width, placement.height), interpolation=cv2.INTER_LINEAR)
    result = np.full((input_height, input_width, 3), fill_value, np.uint8)
    for y in range(placement.height):
        for x in range(placement.width):
            result[placement.top + y, placement.left + x] = resized[y, x]
    return result


def unletterbox_box(
    box: Box, picture_width: int, picture_height: int, input_width: int, input_height: int
) -> Box:
    placement = place(picture_width, picture_height, input_width, input_height)

    def to_picture(position: float, begin: int, length: int, picture_length: int) -> float:
        moved = (position - begin) * picture_length / length
        return min(max(moved, 0.0), float(picture_length))

    x_min, y_min, x_max, y_max = box
    return (
        to_picture(x_min, placement.left, placement.width, picture_width),
        to_picture(y_min, placement.top, placement.height, picture_height),
        to_picture(x_max, placement.left, placement.width, picture_width),
        to_picture(y_max, placement.top, placement.height, picture_height),
    )


def center_crop(picture: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 to (side, side, 3) uint8, as torchvision's Resize(side) and CenterCrop(side) do it."""
    height, width, _ = picture.shape
    if width <= height:
        new_width, new_height = side, int(side * height / width)
    else:
        new_width, new_height = int(side * width / height), side
    resized = np.asarray(Image.fromarray(picture).resize((new_width, new_height), Image.Resampling.BILINEAR))
    top = round((new_height - side) / 2.0)
    left = round((new_width - side) / 2.0)
    return resized[top : top + side, left : left + side]


def read_yolo_raw(
    rows: NDArray[np.float32], confidence_threshold: float, class_ids: Sequence[int] | None = None
) -> list[Detection]:
    """(4 + C, A) of one picture: cx, cy, w, h and C scores an anchor; its best class if above threshold."""
    found = []
    for anchor in range(rows.shape[1]):
        centre_x, centre_y, width, height, *scores = (float(value) for value in rows[:, anchor])
        confidence = max(scores)
        class_id = scores.index(confidence)
        if confidence <= np.float32(confidence_threshold) or not _wanted(class_id, class_ids):
            continue
        box = (
            centre_x - width / 2,
            centre_y - height / 2,
            centre_x + width / 2,
            centre_y + height / 2,
        )
        found.append(Detection(box, confidence, class_id))
    return found


def read_yolo_end_to_end(
    rows: NDArray[np.float32], confidence_threshold: float, class_ids: Sequence[int] | None = None
) -> list[Detection]:
    """(R, 6) of one picture: x_min, y_min, x_max, y_max, confidence, class."""
    found = []
    for row in rows:
        x_min, y_min, x_max, y_max, confidence, class_number = (float(value) for value in row)
        if confidence > np.float32(confidence_threshold) and _wanted(int(class_number), class_ids):
            found.append(Detection((x_min, y_min, x_max, y_max), confidence, int(class_number)))
    return found


def read_classification(
    scores: NDArray[np.float32],
    confidence_threshold: float,
    top_k: int,
    class_ids: Sequence[int] | None = None,
) -> list[ScoredClass]:
    """(C,) of one picture: the best of those asked for, above the threshold or, where that is 0, any."""
    found = []
    for class_id, score in enumerate(scores):
        enough = score >= 0 if confidence_threshold == 0 else score > np.float32(confidence_threshold)
        if np.isfinite(score) and enough and _wanted(class_id, class_ids):
            found.append(ScoredClass(class_id, float(score)))
    return sorted(found, key=lambda one: (-one.confidence, one.class_id))[:top_k]


def _wanted(class_id: int, class_ids: Sequence[int] | None) -> bool:
    return class_ids is None or class_id in class_ids


def iou(one: Box, other: Box) -> float:
    """Shared area over joint area; a box that is nowhere wider or nowhere higher than 0 shares nothing."""
    shared_width = min(one[2], other[2]) - max(one[0], other[0])
    shared_height = min(one[3], other[3]) - max(one[1], other[1])
    if shared_width <= 0 or shared_height <= 0:
        return 0.0
    shared = shared_width * shared_height
    joint = _area(one) + _area(other) - shared
    return shared / joint if shared > 0 else 0.0


def _area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def nms(
    detections: Sequence[Detection],
    iou_threshold: float,
    max_detections: int,
    *,
    class_agnostic: bool = False,
) -> list[Detection]:
    """Best first; of equal confidences, the one given first. Kept unless a kept one before it overlaps it."""
    best_first = sorted(detections, key=lambda detection: -detection.confidence)
    kept: list[Detection] = []
    for candidate in best_first:
        rivals = [one for one in kept if class_agnostic or one.class_id == candidate.class_id]
        if all(iou(rival.box, candidate.box) <= iou_threshold for rival in rivals):
            kept.append(candidate)
    return kept[:max_detections]
