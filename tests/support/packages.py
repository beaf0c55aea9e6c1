"""Packages of jobs whose stages before packaging were made up."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from export_pipeline.job import JobFolder, JobRecord
from export_pipeline.stages.package import build_package, write_entry


def say_nothing(message: str, fraction: float | None = None) -> None:
    """As a step's `say`."""


def write_package(folder: JobFolder, record: JobRecord, **parts: dict[str, Any]) -> Path:
    """The entry and the package; answers the zip. parts: `performance` and `validation` of metadata.json."""
    with folder.drafting(folder.entry_root) as draft:
        write_entry(folder, record, draft, **parts)
    build_package(folder, record, say_nothing)
    return folder.zip_file(record)


def unzipped(package: Path, target: Path) -> Path:
    with zipfile.ZipFile(package) as archive:
        archive.extractall(target)
    return target
