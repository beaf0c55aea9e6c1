"""`visiongate-export verify | versions | set-default`: what was made, and which version is served."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from export_pipeline import repository as repositories
from export_pipeline.cli.console import out
from export_pipeline.packaging.verify import verify_package

Repository = Annotated[Path, typer.Option(help="Triton's model repository.")]
Name = Annotated[str, typer.Argument(help="The model's name.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def verify(
    package: Annotated[Path, typer.Argument(help="The package's zip.")], as_json: AsJson = False
) -> None:
    """Is a package as it was made? Nothing of it is run or unpacked."""
    report = verify_package(package)
    if as_json:
        typer.echo(json.dumps(asdict(report)))
        return
    out.print(f"{escape(str(package))} is as it was made: {report.files} files, {report.size_bytes:,} bytes.")
    out.print(
        f"{report.model_name} version {report.version}: {report.task_type}, {report.export_format}, "
        f"{report.classes} classes, {'certified' if report.certified else 'not certified'}."
    )
    out.print(f"model      {report.model_sha256}\ncheckpoint {report.checkpoint_sha256}", style="dim")


def versions(name: Name, repository: Repository, as_json: AsJson = False) -> None:
    """List the versions of a model."""
    found = repositories.list_versions(repository, name)
    if as_json:
        typer.echo(json.dumps([asdict(version) for version in found]))
        return
    table = Table("version", "served", "certified", "published", "model")
    for version in found:
        moment = datetime.fromtimestamp(version.published_at, UTC)
        table.add_row(
            str(version.version),
            "default" if version.is_default else "loaded" if version.is_loaded else "",
            "yes" if version.passed else "no",
            moment.isoformat(timespec="seconds"),
            version.sha256[:12],
        )
    out.print(table)


def set_default(
    name: Name,
    version: Annotated[int, typer.Argument(help="The version to serve.")],
    repository: Repository,
) -> None:
    """Serve this version from now on; the gateway follows within a second or two."""
    repositories.set_default(repository, name, version)
    out.print(f"{escape(name)}: version {version} is the default.")
