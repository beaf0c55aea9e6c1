"""Where isolated steps run. A port: a process on this machine is its first form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from export_pipeline.job import JobFolder, JobRecord
from export_pipeline.progress import Progress


class Executor(Protocol):
    @property
    def unconfined(self) -> bool:
        """Whether steps run without confinement, because the caller trusts the checkpoint."""

    def run(self, folder: JobFolder, record: JobRecord, steps: Sequence[str], progress: Progress) -> None:
        """Run these steps, one after the other, apart from everything else, and return when they are done.

        Raises BadInput, Unsupported, ValidationFailed as the process's exit code says, LimitExceeded,
        Cancelled, and ExportError for any other end. Nothing of it runs on afterwards.
        """
