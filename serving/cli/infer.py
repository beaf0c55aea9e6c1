"""`visiongate infer PICTURE`: send a picture to the running gateway."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from serving.cli.client import GatewayClient
from serving.cli.console import out
from serving.cli.drawing import draw_predictions, predictions_table
from serving.cli.running_stack import RunningStack
from serving.settings import load_settings


def infer(
    picture: Annotated[Path, typer.Argument(help="A JPEG, PNG, WebP or BMP file.")],
    model: Annotated[str | None, typer.Option(help="Deployment id or name.")] = None,
    confidence: Annotated[float | None, typer.Option(help="Confidence threshold, 0 to 1.")] = None,
    draw: Annotated[
        Path | None, typer.Option(help="Write the picture with its boxes or classes drawn on it here.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as it came.")] = False,
) -> None:
    """Send a picture to the running gateway and show the boxes, or the classes, that it finds."""
    stack = RunningStack.find(load_settings().run_directory)
    answer = GatewayClient(stack.url, stack.api_key).infer(
        picture, model=model, confidence_threshold=confidence
    )
    if draw is not None:
        draw_predictions(picture.read_bytes(), answer["predictions"], draw)
    if as_json:
        print(json.dumps(answer, indent=2))  # noqa: T201 - for another program, not for rich to wrap
    else:
        out.print(predictions_table(answer["predictions"], title=f"{answer['model']}: {picture.name}"))
