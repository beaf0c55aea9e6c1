"""`visiongate-export`: the command. Each file here is one or two of its verbs."""

from __future__ import annotations

import sys

import typer
from rich.markup import escape

from export_pipeline.cli import environment, published, resume, run
from export_pipeline.cli.console import errors
from export_pipeline.errors import ExportError
from export_pipeline.text import printable

app = typer.Typer(
    help="From an Ultralytics checkpoint to a certified package and a live Triton entry.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("run")(run.run)
app.command("resume")(resume.resume)
app.command("verify")(published.verify)
app.command("versions")(published.versions)
app.command("set-default")(published.set_default)
app.command("environment")(environment.environment)


def main() -> None:
    try:
        app()
    except ExportError as error:
        errors.print(f"[bold red]error:[/] {escape(printable(str(error)))}", highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
