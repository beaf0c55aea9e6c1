"""What the isolated process says of the checkpoint and of the model, against what the host knows by itself.

Whoever can make that process say anything at all still gets a contract for the very files that are there,
made as they were asked for. The model's hash is compared when it is copied, and its tensors by Triton.
"""

from __future__ import annotations

from collections.abc import Iterator

from export_pipeline.errors import ExportError
from export_pipeline.facts import CheckpointFacts, ModelFacts
from export_pipeline.job import JobFolder, JobRecord, sha256_of


def require_true(folder: JobFolder, record: JobRecord) -> None:
    """Raises ExportError naming what `checkpoint.json` or `model.json` says that is not so."""
    checkpoint, model = folder.checkpoint(), folder.model()
    for what, said, known in _statements(folder, record, checkpoint, model):
        if said != known:
            raise ExportError(f"The isolated process says of the {what}: {said}. It is {known}.")


def _statements(
    folder: JobFolder, record: JobRecord, checkpoint: CheckpointFacts, model: ModelFacts
) -> Iterator[tuple[str, object, object]]:
    """What is stated, what the isolated process says of it, and what we know."""
    file, exported = folder.checkpoint_file, folder.model_folder / model.file
    request, config = record.request, record.request.export_config
    yield "checkpoint's framework", checkpoint.framework, request.framework
    yield "checkpoint's size in bytes", checkpoint.size_bytes, file.stat().st_size
    yield "checkpoint's SHA-256", checkpoint.sha256, sha256_of(file)
    yield "model's format", model.export_format, request.export_format
    yield "model's size in bytes", model.size_bytes, exported.stat().st_size
    yield "model's precision", model.precision, config.precision
    yield "model's opset", model.opset_version, config.opset_version
    yield "model's largest batch", model.max_batch_size, config.max_batch_size
    yield "model's own preprocessing", model.preprocessing_embedded, config.embed_preprocessing
    yield "model's own suppression", model.nms_embedded, config.embed_nms
    yield "model's input size", model.resize.size, config.imgsz or checkpoint.trained_size_wh
    (width, height), batch = model.resize.size, -1 if config.dynamic_axes else 1
    pixels = (height, width, 3) if config.embed_preprocessing else (3, height, width)
    yield "model's inputs' shapes", [each.shape for each in model.inputs], [(batch, *pixels)]
    if config.head != "native":
        final_rows = config.embed_nms or config.head == "end_to_end"
        yield "model's head end-to-end", "end_to_end" in model.head, final_rows
