"""`visiongate-export resume`: go on with a job, or do stages of it again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from export_pipeline import api
from export_pipeline.cli.console import cancellable
from export_pipeline.cli.display import ProgressForm, showing, tell
from export_pipeline.job import Stage


def resume(
    folder: Annotated[Path, typer.Argument(help="The job's folder.")],
    from_stage: Annotated[
        Stage | None, typer.Option("--from", help="Do this stage and those after it again.")
    ] = None,
    until: Annotated[Stage | None, typer.Option(help="Stop after this stage.")] = None,
    unconfined: Annotated[
        bool,
        typer.Option("--unconfined", help="Open the checkpoint without confinement: only one you trust."),
    ] = False,
    progress: Annotated[ProgressForm, typer.Option(help="json: a line an event, on stdout.")] = "rich",
) -> None:
    """Go on with a job that was stopped, or do stages of it again."""
    with cancellable(), showing(progress) as shown:
        result = api.resume(
            folder,
            from_stage=from_stage,
            until=until,
            executor=api.ConfinedHere(unconfined=unconfined),
            progress=shown,
        )
    tell(result, progress)
