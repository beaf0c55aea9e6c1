"""What trained a checkpoint, as a port: opening one, asking it, and making of it a graph that can be written.

A framework is a module of this package with a function `open_checkpoint(path, sha256) -> OpenedModel`. Such a
module imports torch, so it is imported only where a checkpoint is opened: in the isolated process.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from export_pipeline.errors import BadInput, Unsupported, reading
from export_pipeline.facts import CheckpointFacts, Head, Normalize, Resize, Tensor
from export_pipeline.job import sha256_of
from export_pipeline.predictions import PredictionSet
from export_pipeline.request import ExportConfig, Framework, HeadChoice

MODULES: Final[dict[Framework, str]] = {"ultralytics": "export_pipeline.frameworks.ultralytics"}
ENVIRONMENT: Final = {"YOLO_AUTOINSTALL": "false", "YOLO_OFFLINE": "true", "PIP_REQUIRE_VIRTUALENV": "1"}
"""Read when Ultralytics is imported: it installs no packages behind our back, and calls nobody."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Of a prediction: confidence > confidence, IoU with a better one <= iou, the best max_detections."""

    confidence: float
    iou: float
    max_detections: int


@dataclass(frozen=True, slots=True)
class Graph:
    """What a format writes.

    module: a torch module in evaluation mode, single precision, whose outputs are `outputs`, in this order.
    A head with suppression embedded is the format's work: `head` and `outputs` are those of the raw one.
    """

    module: Any
    head: Head
    class_count: int
    resize: Resize
    normalize: Normalize
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    made_with: dict[str, str]


class OpenedModel(Protocol):
    """A checkpoint, opened without running anything that its file may have brought along."""

    @property
    def facts(self) -> CheckpointFacts: ...

    def graph(self, config: ExportConfig) -> Graph:
        """Raises BadInput for a size the network cannot take, Unsupported for a head it does not have."""

    def raw_outputs(self, config: ExportConfig, batch: NDArray[Any]) -> list[NDArray[np.float32]]:
        """What the very graph that is exported answers in torch, one array an output, in float32.

        batch: as the graph's first input, any number of pictures but at least one. With `embed_nms` it is the
        raw head's answer, before suppression; with precision fp16, the single-precision one.
        """

    def predict(
        self,
        pictures: Sequence[Path],
        thresholds: Thresholds,
        size_wh: tuple[int, int],
        head: HeadChoice = "native",
    ) -> PredictionSet:
        """The framework's own predict, a picture at a time, on the whole input of `size_wh` pixels.

        A classification answers its `max_detections` best classes above the threshold, 0 letting all through.
        Raises BadInput for a picture the framework cannot read, Unsupported for a task whose predictions are
        more than boxes or classes.
        """

    def validate(
        self,
        dataset: Path,
        size_wh: tuple[int, int],
        max_pictures: int | None = None,
        head: HeadChoice = "native",
    ) -> dict[str, float]:
        """The framework's own accuracy on a labelled data set, 0..1: mAP50 and mAP50-95, or top1 and top5.

        Empty where the framework cannot measure at this size. Leaves nothing behind. Raises BadInput for a
        data set that does not fit.
        """


def open_checkpoint(path: Path, framework: Framework = "ultralytics") -> OpenedModel:
    """The same opened model as long as the file is the same, so that later steps need not open it again.

    Raises BadInput where the file is not a checkpoint of this framework, or refers to code.
    """
    with reading(path, "the checkpoint"):
        if path.stat().st_size == 0:
            raise BadInput(f"The checkpoint {path.name} is empty.")
        return _open(path.absolute(), sha256_of(path), framework)


@functools.lru_cache(maxsize=1)
def _open(path: Path, sha256: str, framework: Framework) -> OpenedModel:
    if framework not in MODULES:
        raise Unsupported(f"There is no exporter for {framework} yet; there is one for {', '.join(MODULES)}.")
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    opened: OpenedModel = importlib.import_module(MODULES[framework]).open_checkpoint(path, sha256)
    return opened
