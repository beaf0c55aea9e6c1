"""What a job says while it works, and what it has made: for a person, or in JSON lines for a program."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Final, Literal

from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from export_pipeline.api import ExportResult
from export_pipeline.cli.console import errors, out
from export_pipeline.progress import Event
from export_pipeline.progress import Progress as TakesEvents
from export_pipeline.text import printable

ProgressForm = Literal["rich", "json"]

DOING: Final = {
    "checkpoint.fetch": "fetching the checkpoint",
    "checkpoint.inspect": "opening the checkpoint, apart from everything else",
    "export.graph": "making the graph",
    "validate.pictures": "gathering golden pictures",
    "validate.measure": "asking the checkpoint and the exported file",
    "validate.serve": "asking a gateway",
    "validate.judge": "comparing",
    "package.entry": "making the Triton entry",
    "package.package": "making the package",
    "publish.publish": "publishing",
}


@contextlib.contextmanager
def showing(form: ProgressForm) -> Iterator[TakesEvents]:
    """Where the job's events go while the block runs."""
    if form == "json":
        yield lambda event: _line(event.model_dump(mode="json"))
        return
    columns = (
        SpinnerColumn(finished_text="[green]✓"),
        TextColumn("{task.description:<10}", table_column=Column(min_width=10)),
        TimeElapsedColumn(),
        TextColumn("{task.fields[doing]}", style="dim", table_column=Column(ratio=1, no_wrap=True)),
    )
    with Progress(*columns, console=errors, expand=True) as lines:
        yield StageLines(lines)


class StageLines:
    """A line a stage: whether it is done, how long it has taken, what it is doing."""

    def __init__(self, lines: Progress) -> None:
        self._lines = lines
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, event: Event) -> None:
        if event.stage not in self._tasks:
            self._finish_all()
            self._tasks[event.stage] = self._lines.add_task(event.stage, total=1, doing="")
        task = self._tasks[event.stage]
        if event.kind == "done_before":
            self._lines.update(task, doing="done before", completed=1)
            return
        doing = event.message or DOING.get(event.step, event.step)
        share = f" {event.fraction:.0%}" if event.fraction is not None and event.kind == "working" else ""
        if event.kind != "done":
            self._lines.update(task, doing=escape(printable(doing)) + share, completed=0)
        elif event.step == _last_step(event.stage):
            self._lines.update(task, completed=1)

    def _finish_all(self) -> None:
        for task in self._tasks.values():
            self._lines.update(task, completed=1)


def tell(result: ExportResult, form: ProgressForm) -> None:
    """What the job has made."""
    if form == "json":
        made = {
            name: str(value) if isinstance(value, os.PathLike) else value
            for name, value in asdict(result).items()
        }
        _line({"result": made})
        return
    if result.certificate is not None:
        out.print(certificate_table(result.certificate))
        if "accuracy" in result.certificate:
            out.print(accuracy_table(result.certificate["accuracy"]))
        if "gateway_refused" in result.certificate:
            out.print(f"The gateway does not serve it: {escape(result.certificate['gateway_refused'])}")
    for stage, seconds in result.seconds.items():
        out.print(f"{stage:<10} {seconds:8.1f} s", style="dim")
    if result.package is not None:
        megabytes = result.package.stat().st_size / 1e6
        out.print(f"Package: {escape(str(result.package))} ({megabytes:.1f} MB)")
    if result.published is not None:
        out.print(f"Published: {escape(str(result.published))}, version {result.version}")
        if "gateway" in (result.certificate or {}).get("paths", {}):
            out.print(f"Gateways on it serve POST /v1/infer/{escape(result.name)} within seconds")


def certificate_table(certificate: dict[str, Any]) -> Table:
    """`validation` of metadata.schema.json: how far each path was from the checkpoint, at most."""
    title = (
        f"{certificate['predictions']} predictions in {certificate['pictures']} pictures, to the checkpoint's"
    )
    table = Table("path", "outputs differ", "IoU at least", "confidence differs", "unmatched", title=title)
    keys = ("tensor_max_abs", "iou_min", "confidence_max", "unmatched")
    for path, difference in certificate["paths"].items():
        table.add_row(path, *(f"{difference[key]:.6g}" if key in difference else "" for key in keys))
    return table


def accuracy_table(accuracy: dict[str, Any]) -> Table:
    table = Table(
        "metric",
        "checkpoint",
        "file",
        "gateway",
        title=escape(f"{accuracy['dataset']}, {accuracy['pictures']} pictures"),
    )
    for metric, figures in accuracy["metrics"].items():
        cells = (figures.get(path) for path in ("checkpoint", "file", "gateway"))
        table.add_row(metric, *("" if cell is None else f"{cell:.4f}" for cell in cells))
    return table


def _last_step(stage: str) -> str:
    return [step for step in DOING if step.startswith(f"{stage}.")][-1]


def _line(values: dict[str, Any]) -> None:
    try:
        print(json.dumps(values), flush=True)  # noqa: T201 - for another program, not for rich to wrap
    except BrokenPipeError:
        # Who reads along has gone; the job goes on. Python would say so once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
