"""What an exported model is written as, as a port: a graph goes in, one file comes out.

A format is a module of this package with a function `write(graph, folder, config) -> ModelFacts`, imported
only where it is asked for: in the isolated process.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Final

from export_pipeline.errors import Unsupported
from export_pipeline.facts import ModelFacts
from export_pipeline.frameworks import Graph
from export_pipeline.request import ExportConfig, ExportFormat

MODULES: Final[dict[ExportFormat, str]] = {"onnx": "export_pipeline.formats.onnx"}


def write_model(graph: Graph, folder: Path, config: ExportConfig, export_format: ExportFormat) -> ModelFacts:
    """Write the model file into `folder`, which is empty. The same graph and config give the same bytes.

    Raises Unsupported for what the format cannot hold.
    """
    if export_format not in MODULES:
        raise Unsupported(
            f"There is no exporter for {export_format} yet; there is one for {', '.join(MODULES)}."
        )
    facts: ModelFacts = importlib.import_module(MODULES[export_format]).write(graph, folder, config)
    return facts
