"""The stage that puts the entry into the model repository."""

from __future__ import annotations

import json

from export_pipeline.errors import BadInput
from export_pipeline.job import JobFolder, JobRecord
from export_pipeline.progress import Say
from export_pipeline.repository import publish_entry


def publish(folder: JobFolder, record: JobRecord, say: Say) -> None:
    """Leaves `published.json`. Raises BadInput as `repository.publish_entry` does."""
    request = record.request
    if request.publish is None:
        raise BadInput("This job has no repository to publish to.")
    say(f"publishing {request.name} to {request.publish}")
    new = publish_entry(request.publish, folder.entry_root / request.name, new_version=request.new_version)
    say(f"{request.name} version {record.version} {'is the default' if new else 'lay there already'}", 1.0)
    published = {"repository": str(request.publish), "name": request.name, "version": record.version}
    folder.write("published.json", json.dumps(published, indent=2).encode() + b"\n")
