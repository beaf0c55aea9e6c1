"""`visiongate models`: what the running gateway serves."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from serving.adapters.catalog import FolderCatalog
from serving.cli.client import GatewayClient
from serving.cli.console import out
from serving.cli.running_stack import RunningStack
from serving.settings import load_settings


def models(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the models that the running gateway serves, and those that it refuses, with the reason."""
    settings = load_settings()
    stack = RunningStack.find(settings.run_directory)
    found = GatewayClient(stack.url, stack.api_key).models()
    if as_json:
        print(json.dumps(found, indent=2))  # noqa: T201 - for another program, not for rich to wrap
        return
    table = Table("model", "version", "task", "input", "classes", "contract")
    for model in found:
        size = model["input_size"]
        table.add_row(
            model["id"],
            model["version"],
            model["task"],
            f"{size['width']} x {size['height']}",
            ", ".join(model["classes"]),
            model["contract"][:12],
        )
    out.print(table)
    for name, why in FolderCatalog(settings.model_repository).scan().refused.items():
        out.print(f"[bold]{escape(name)}[/] is not served: {escape(why)}")
