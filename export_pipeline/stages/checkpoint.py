"""The stage that fetches the checkpoint and finds out what it is, without running anything of it."""

from __future__ import annotations

from export_pipeline import storage
from export_pipeline.frameworks import open_checkpoint
from export_pipeline.job import JobFolder, JobRecord
from export_pipeline.progress import Say


def fetch(folder: JobFolder, record: JobRecord, say: Say) -> None:
    """Leaves the file in `checkpoint/`."""
    storage.fetch(folder, record, say)


def inspect(folder: JobFolder, record: JobRecord, say: Say) -> None:
    """Leaves `checkpoint.json`."""
    say("Opening the checkpoint")
    facts = open_checkpoint(folder.checkpoint_file, record.request.framework).facts
    folder.write("checkpoint.json", facts.to_json())
    classes = f"{len(facts.class_names)} classes"
    say(f"{facts.architecture}: {facts.task_type}, {classes}, {facts.parameters:,} weights")
