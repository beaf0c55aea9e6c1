"""Predictions on a picture, for a person to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.table import Table

from serving.cli.console import shown

_PALETTE_BGR = ((66, 84, 240), (240, 160, 40), (70, 190, 60), (40, 190, 250), (200, 80, 200), (200, 200, 60))
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def draw_predictions(picture: bytes, predictions: list[dict[str, Any]], target: Path) -> Path:
    """`picture` is an encoded file; predictions are as `POST /v1/infer` answers them.

    What has a box is drawn where it is; classes of the whole picture stand in its corner, the best on top.
    """
    canvas = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)
    thickness = max(2, round(min(canvas.shape[:2]) / 240))
    # Least certain first, so that the best boxes end up on top.
    for prediction in reversed([each for each in predictions if "bbox" in each]):
        left, top, right, bottom = (round(side) for side in prediction["bbox"])
        cv2.rectangle(canvas, (left, top), (right, bottom), _color(prediction), thickness, cv2.LINE_AA)
        _draw_label(canvas, prediction, left=left, bottom=top, thickness=thickness)
    top = 0
    for prediction in predictions:
        if "bbox" not in prediction:
            top = _draw_label(canvas, prediction, left=0, bottom=top, thickness=thickness)
    target.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(target), canvas)
    return target


def _draw_label(
    canvas: cv2.typing.MatLike, prediction: dict[str, Any], *, left: int, bottom: int, thickness: int
) -> int:
    """Ends at `bottom`, or where it has to end to be seen whole; answers where the next one below would."""
    scale = thickness / 3.5
    label = f"{prediction['class']} {prediction['confidence']:.2f}"
    (width, height), baseline = cv2.getTextSize(label, _FONT, scale, thickness // 2)
    base = max(bottom, height + baseline)
    corner, opposite = (left, base - height - baseline), (left + width, base)
    cv2.rectangle(canvas, corner, opposite, _color(prediction), cv2.FILLED)
    white, place = (255, 255, 255), (left, base - baseline // 2)
    cv2.putText(canvas, label, place, _FONT, scale, white, thickness // 2, cv2.LINE_AA)
    return base + 1 + height + baseline


def _color(prediction: dict[str, Any]) -> tuple[int, int, int]:
    return _PALETTE_BGR[prediction["class_id"] % len(_PALETTE_BGR)]


def predictions_table(predictions: list[dict[str, Any]], *, title: str) -> Table:
    table = Table(title=shown(title), title_justify="left")
    table.add_column("class", style="bold")
    table.add_column("confidence", justify="right")
    if any("bbox" in prediction for prediction in predictions):
        for side in ("x_min", "y_min", "x_max", "y_max"):
            table.add_column(side, justify="right")
    for prediction in predictions:
        sides = [f"{side:.1f}" for side in prediction.get("bbox", ())]
        table.add_row(shown(prediction["class"]), f"{prediction['confidence']:.3f}", *sides)
    return table
