"""`visiongate up`: a whole stack on this machine, proven with a first prediction, until Ctrl-C."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from serving.cli.client import GatewayClient
from serving.cli.console import errors, out, shown
from serving.cli.drawing import draw_predictions, predictions_table
from serving.cli.running_stack import RunningStack, the_only_stack_in
from serving.logs import log_to
from serving.settings import Settings, load_settings
from serving.stack import LocalStack, wait_until


def up() -> None:
    """Start Redis, Triton, Ray Serve and the gateway here, send a first picture, serve until Ctrl-C."""
    began = time.monotonic()
    settings = load_settings()
    log_to(settings.run_directory / "logs" / "stack.jsonl", level=settings.log_level)
    _on_stop_signals(_interrupt)
    with the_only_stack_in(settings.run_directory):
        try:
            with LocalStack(settings) as stack:
                try:
                    _start(stack)
                    _introduce(stack, settings, began)
                    while True:
                        signal.pause()
                except KeyboardInterrupt:
                    pass
                finally:
                    # From here on another Ctrl-C would only leave processes behind.
                    _on_stop_signals(signal.SIG_IGN)
                    RunningStack.forget(settings.run_directory)
                    errors.print("Stopping …", style="dim")
        finally:
            errors.print("Stopped.", style="dim")


def _on_stop_signals(handler: signal.Handlers | Callable[[int, FrameType | None], NoReturn]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _start(stack: LocalStack) -> None:
    columns = (SpinnerColumn(finished_text="[green]✓"), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=errors) as progress:
        for step in stack.steps():
            task = progress.add_task(step.title, total=1)
            step.start()
            _on_stop_signals(_interrupt)  # Ray puts handlers of its own in place, which end us on the spot
            progress.advance(task)
        task = progress.add_task("Ready", total=1)
        wait_until(GatewayClient(stack.url, "").is_ready, what="The gateway")
        progress.advance(task)


def _introduce(stack: LocalStack, settings: Settings, began: float) -> None:
    """Prove it with a picture, then tell people and programs where everything is."""
    for name, why in stack.not_loaded.items():
        out.print(f"[bold]{shown(name)}[/] is not served: {shown(why)}")
    api_key = stack.issue_key()
    annotated = _first_prediction(stack, settings, api_key, began)
    running = RunningStack(
        url=stack.url,
        api_key=api_key,
        admin_token=settings.admin_token.get_secret_value(),
        triton_url=stack.triton_url,
        redis_url=stack.redis_url,
        metrics_url=stack.metrics_url,
        dashboard_url=stack.dashboard_url,
        dashboard_token=settings.ray_token.get_secret_value(),
        annotated_image=str(annotated or ""),
        pid=os.getpid(),
    )
    path = running.save(settings.run_directory)
    out.print(f"\nServing on [bold]{stack.url}[/] (docs at {stack.url}/docs); everything else in {path}")
    out.print("Stop with Ctrl-C.", style="dim")


def _first_prediction(stack: LocalStack, settings: Settings, api_key: str, began: float) -> Path | None:
    sample = stack.sample_picture()
    if sample is None:
        out.print("No model ships a sample.jpg; send your own with `visiongate infer`.")
        return None
    model, picture = sample
    answer: dict[str, Any] = GatewayClient(stack.url, api_key).infer(picture, model=model)
    annotated = draw_predictions(
        picture.read_bytes(), answer["predictions"], settings.run_directory / "annotated.jpg"
    )
    seconds = time.monotonic() - began
    title = f"{model}, {answer['latency_ms']:.1f} ms; first prediction {seconds:.1f} s after the start"
    out.print(predictions_table(answer["predictions"], title=title))
    out.print(f"The picture with its predictions: {annotated}")
    return annotated
