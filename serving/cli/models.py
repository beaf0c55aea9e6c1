"""`visiongate models`: what the running gateway serves."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Table

from serving.cli.client import GatewayClient
from serving.cli.console import out
from serving.cli.running_stack import RunningStack
from serving.settings import load_settings


def models(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the models that the running gateway serves."""
    stack = RunningStack.find(load_settings().run_directory)
    found = GatewayClient(stack.url, stack.api_key).models()
    if as_json:
        print(json.dumps(found, indent=2))  # noqa: T201 - for another program, not for rich to wrap
        return
    table = Table("model", "task", "input", "classes", "contract")
    for model in found:
        size = model["input_size"]
        table.add_row(
            model["id"],
            model["task"],
            f"{size['width']} x {size['height']}",
            ", ".join(model["classes"]),
            model["contract"][:12],
        )
    out.print(table)
