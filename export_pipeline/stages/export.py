"""The stage that makes the model file."""

from __future__ import annotations

from export_pipeline.formats import write_model
from export_pipeline.frameworks import open_checkpoint
from export_pipeline.job import JobFolder, JobRecord
from export_pipeline.progress import Say


def export_graph(folder: JobFolder, record: JobRecord, say: Say) -> None:
    """Leaves the model file and `model.json` in `model/`. Raises BadInput, Unsupported for options."""
    request = record.request
    say("Making the graph", 0.0)
    graph = open_checkpoint(folder.checkpoint_file, request.framework).graph(request.export_config)
    width, height = graph.resize.size
    say(f"Tracing {graph.head} at {width} x {height}", 0.3)
    with folder.drafting(folder.model_folder) as draft:
        facts = write_model(graph, draft, request.export_config, request.export_format)
        (draft / "model.json").write_bytes(facts.to_json())
    say(f"{facts.file}: {facts.size_bytes / 1e6:.1f} MB, {facts.precision}, opset {facts.opset_version}", 1.0)
