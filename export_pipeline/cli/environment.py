"""`visiongate-export environment`: build the environment that opens checkpoints, before it is needed."""

from __future__ import annotations

from rich.markup import escape

from export_pipeline.cli.console import cancellable, errors, out
from export_pipeline.environment import ensure_environment


def environment() -> None:
    """Build the export environment, torch and Ultralytics in it; at once if it is there."""
    with cancellable(), errors.status("Building the export environment …") as status:
        python = ensure_environment(lambda message: status.update(escape(message)))
    out.print(f"The export environment is ready: {escape(str(python))}")
