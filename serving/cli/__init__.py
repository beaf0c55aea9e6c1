"""`visiongate`: the command. Each file here is one of its verbs."""

from __future__ import annotations

import sys

import typer

from serving.cli import infer, keys, meter, models, try_models, up, usage
from serving.cli.console import errors, shown
from serving.errors import VisiongateError

app = typer.Typer(
    help="A gateway for vision inference on Ray Serve and NVIDIA Triton.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("up")(up.up)
app.command("infer")(infer.infer)
app.command("models")(models.models)
app.command("try")(try_models.try_models)
app.command("meter")(meter.meter)
app.add_typer(keys.app, name="keys")
app.add_typer(usage.app, name="usage")


def main() -> None:
    try:
        app()
    except VisiongateError as error:
        detail = "\n".join(shown(line) for line in error.detail.splitlines())
        errors.print(f"[bold red]error:[/] {detail}", highlight=False)
        sys.exit(2)
