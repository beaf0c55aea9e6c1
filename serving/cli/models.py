"""`visiongate models`: what the running gateway serves."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from typing import Annotated, Any

import typer
from rich.table import Table

from serving.adapters.catalog import FolderCatalog
from serving.cli.client import GatewayClient
from serving.cli.console import out, shown
from serving.cli.running_stack import RunningStack
from serving.ports import CatalogScan
from serving.settings import load_settings


def models(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the models that the running gateway serves, and say of the others why it does not."""
    settings = load_settings()
    stack = RunningStack.find(settings.run_directory)
    found = GatewayClient(stack.url, stack.api_key).models()
    if as_json:
        print(json.dumps(found, indent=2))  # noqa: T201 - for another program, not for rich to wrap
        return
    out.print(models_table(found))
    served = {model["id"] for model in found}
    for name, why in not_served(FolderCatalog(settings.model_repository).scan(), served):
        out.print(f"[bold]{shown(name)}[/] is not served: {shown(why)}")


def models_table(found: list[dict[str, Any]]) -> Table:
    table = Table("model", "version", "task", "input", "classes", "contract")
    for model in found:
        size = model["input_size"]
        cells = (
            model["id"],
            model["version"],
            model["task"],
            f"{size['width']} x {size['height']}",
            ", ".join(model["classes"]),
            model["contract"][:12],
        )
        table.add_row(*map(shown, cells))
    return table


def not_served(scan: CatalogScan, served: Collection[str]) -> Iterator[tuple[str, str]]:
    """Of what lies in the repository, each name and the reason; an older entry of it may still be served."""
    for name, why in scan.refused.items():
        if name not in served:
            yield name, why
    for name in scan.models:
        if name not in served:
            yield name, "not loaded (see the gateway's log)"
