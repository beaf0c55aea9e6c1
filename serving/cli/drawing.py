"""Boxes on a picture, for a person to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.table import Table

_PALETTE_BGR = ((66, 84, 240), (240, 160, 40), (70, 190, 60), (40, 190, 250), (200, 80, 200), (200, 200, 60))
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def draw_predictions(picture: bytes, predictions: list[dict[str, Any]], target: Path) -> Path:
    """`picture` is an encoded file; predictions are as `POST /v1/infer` answers them."""
    canvas = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)
    thickness = max(2, round(min(canvas.shape[:2]) / 240))
    scale = thickness / 3.5
    # Least certain first, so that the best boxes end up on top.
    for prediction in reversed(predictions):
        color = _PALETTE_BGR[prediction["class_id"] % len(_PALETTE_BGR)]
        left, top, right, bottom = (round(side) for side in prediction["bbox"])
        cv2.rectangle(canvas, (left, top), (right, bottom), color, thickness, cv2.LINE_AA)
        label = f"{prediction['class']} {prediction['confidence']:.2f}"
        (width, height), baseline = cv2.getTextSize(label, _FONT, scale, thickness // 2)
        base = max(top, height + baseline)
        cv2.rectangle(canvas, (left, base - height - baseline), (left + width, base), color, cv2.FILLED)
        cv2.putText(
            canvas,
            label,
            (left, base - baseline // 2),
            _FONT,
            scale,
            (255, 255, 255),
            thickness // 2,
            cv2.LINE_AA,
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(target), canvas)
    return target


def predictions_table(predictions: list[dict[str, Any]], *, title: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("class", style="bold")
    table.add_column("confidence", justify="right")
    for side in ("x_min", "y_min", "x_max", "y_max"):
        table.add_column(side, justify="right")
    for prediction in predictions:
        table.add_row(
            prediction["class"],
            f"{prediction['confidence']:.3f}",
            *(f"{side:.1f}" for side in prediction["bbox"]),
        )
    return table
