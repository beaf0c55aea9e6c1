"""Ultralytics' YOLOv8, 11 and 26: detection, classification, segmentation, pose, oriented boxes."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import ultralytics
from numpy.typing import NDArray
from ultralytics.nn.modules import head as heads
from ultralytics.utils import DEFAULT_CFG_DICT

from export_pipeline.errors import BadInput, ExportError, Unsupported
from export_pipeline.facts import CheckpointFacts, Head, SizeWh
from export_pipeline.frameworks import Graph, Thresholds
from export_pipeline.frameworks.safe_loading import load_network
from export_pipeline.frameworks.strict_pickle import Remnant
from export_pipeline.frameworks.ultralytics_graph import build_graph
from export_pipeline.frameworks.ultralytics_own import OwnModel
from export_pipeline.predictions import PredictionSet
from export_pipeline.request import ExportConfig, HeadChoice, TaskType
from export_pipeline.text import require_class_names

LEAST_STRIDE: Final = 32
"""What Ultralytics itself rounds sizes to, whatever a network of smaller stride could take."""

_TASKS: Final[dict[type[torch.nn.Module], tuple[TaskType, tuple[Head, Head] | tuple[Head]]]] = {
    heads.Detect: ("detection", ("yolo_raw", "yolo_end_to_end")),
    heads.Classify: ("classification", ("classification",)),
    heads.Segment: ("segmentation", ("yolo_raw_segmentation", "yolo_end_to_end_segmentation")),
    heads.Segment26: ("segmentation", ("yolo_raw_segmentation", "yolo_end_to_end_segmentation")),
    heads.Pose: ("pose", ("yolo_raw_pose", "yolo_end_to_end_pose")),
    heads.Pose26: ("pose", ("yolo_raw_pose", "yolo_end_to_end_pose")),
    heads.OBB: ("obb", ("yolo_raw_obb", "yolo_end_to_end_obb")),
    heads.OBB26: ("obb", ("yolo_raw_obb", "yolo_end_to_end_obb")),
}


class UltralyticsModel:
    """See `OpenedModel`. The network that was opened is never changed: each use has a copy of its own."""

    def __init__(self, network: torch.nn.Module, facts: CheckpointFacts) -> None:
        self._network = network
        self._facts = facts
        self._graph_of = functools.lru_cache(maxsize=1)(self._build_graph)
        self._own = OwnModel(network, facts.task_type)

    @property
    def facts(self) -> CheckpointFacts:
        return self._facts

    def graph(self, config: ExportConfig) -> Graph:
        return self._graph_of(config)

    def raw_outputs(self, config: ExportConfig, batch: NDArray[Any]) -> list[NDArray[np.float32]]:
        with torch.inference_mode():
            answer = self.graph(config).module(torch.from_numpy(np.ascontiguousarray(batch)))
        outputs = answer if isinstance(answer, tuple) else (answer,)
        return [output.float().numpy() for output in outputs]

    def predict(
        self,
        pictures: Sequence[Path],
        thresholds: Thresholds,
        size_wh: tuple[int, int],
        head: HeadChoice = "native",
    ) -> PredictionSet:
        end_to_end = _is_end_to_end(self._choose(head))
        self._require_size(size_wh)
        return {
            picture.name: self._own.predict(picture, thresholds, size_wh, end_to_end=end_to_end)
            for picture in pictures
        }

    def validate(
        self,
        dataset: Path,
        size_wh: tuple[int, int],
        max_pictures: int | None = None,
        head: HeadChoice = "native",
    ) -> dict[str, float]:
        end_to_end = _is_end_to_end(self._choose(head))
        self._require_size(size_wh)
        if size_wh[0] != size_wh[1]:
            return {}  # Ultralytics' val knows squares only
        return self._own.validate(
            dataset, self._facts.class_names, size_wh[0], max_pictures, end_to_end=end_to_end
        )

    def _build_graph(self, config: ExportConfig) -> Graph:
        head = self._choose(config.head)
        size_wh = config.imgsz or self._facts.trained_size_wh
        self._require_size(size_wh)
        if config.embed_nms and head != "yolo_raw":
            raise Unsupported(
                f"embed_nms is for raw detection heads; this is {head}. Leave it out, or choose head=raw."
            )
        return build_graph(copy.deepcopy(self._network), self._facts, config, head, size_wh)

    def _choose(self, choice: HeadChoice) -> Head:
        """Raises Unsupported for a head that the network does not have."""
        available = self._facts.heads
        if choice == "native":
            return available[0]
        wanted = [head for head in available if _is_end_to_end(head) == (choice == "end_to_end")]
        if not wanted:
            raise Unsupported(
                f"{self._facts.architecture} has no {choice} head; what it has is {', '.join(available)}."
            )
        return wanted[0]

    def _require_size(self, size_wh: SizeWh) -> None:
        stride = self._facts.stride
        for name, side in zip(("width", "height"), size_wh, strict=True):
            if side % stride:
                lower, upper = side // stride * stride, -(-side // stride) * stride
                nearest = f"{lower} or {upper}" if lower else f"{upper}"
                raise BadInput(
                    f"An input {name} of {side} pixels is not a multiple of the network's stride, {stride}; "
                    f"the nearest that would do: {nearest}."
                )
        if self._facts.task_type == "classification" and size_wh[0] != size_wh[1]:
            raise BadInput(f"A classification takes a square; {size_wh[0]} x {size_wh[1]} is none.")


def open_checkpoint(path: Path, sha256: str) -> UltralyticsModel:
    """Raises BadInput for what is no checkpoint, or a damaged one; Unsupported for another network."""
    network, beside = load_network(path)
    if beside.get("modelopt"):
        raise Unsupported("There is no exporter for networks trained with quantisation (modelopt) yet.")
    try:
        facts = _facts(network, beside, path, sha256)
        _revive(network, facts)
    except ExportError:
        raise
    except Exception as exc:  # attributes that are missing, or of another kind than Ultralytics makes them
        raise BadInput(
            f"The checkpoint {path.name} is damaged: its network cannot be read: {type(exc).__name__}: {exc}"
        ) from exc
    return UltralyticsModel(network, facts)


def _facts(network: Any, beside: dict[str, Any], path: Path, sha256: str) -> CheckpointFacts:
    head = network.model[-1]
    if type(head) not in _TASKS:
        raise Unsupported(f"There is no exporter for Ultralytics' {type(head).__name__} head yet.")
    task_type, both = _TASKS[type(head)]
    stride = max(LEAST_STRIDE, int(network.stride.max()))
    return CheckpointFacts(
        framework="ultralytics",
        framework_version=_plain(beside.get("version"), ultralytics.__version__),
        architecture=_plain(Path(str(network.yaml.get("yaml_file", ""))).stem, type(network).__name__),
        sha256=sha256,
        size_bytes=path.stat().st_size,
        task_type=task_type,
        class_names=_class_names(network, head, path),
        stride=stride,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        trained_size_wh=_trained_size(network, beside, stride, 224 if task_type == "classification" else 640),
        heads=both if task_type == "classification" else _available(head, both),
    )


def _available(head: Any, both: tuple[Head, ...]) -> tuple[Head, ...]:
    """Ultralytics' own predict takes the one-to-many head where there is one, also of YOLO26."""
    present = (head.cv2 is not None, getattr(head, "one2one_cv2", None) is not None)
    return tuple(name for name, there in zip(both, present, strict=True) if there)


def _class_names(network: Any, head: Any, path: Path) -> tuple[str, ...]:
    """Raises BadInput where there are not as many as the network answers, or one is no name."""
    names = dict(enumerate(network.names)) if isinstance(network.names, list) else network.names
    count = head.linear.out_features if isinstance(head, heads.Classify) else head.nc
    ids_count_up = isinstance(names, dict) and sorted(names) == list(range(len(names)))
    if not ids_count_up or not all(isinstance(name, str) and name.strip() for name in names.values()):
        raise BadInput(f"The checkpoint {path.name} does not name its classes from 0 up, each with a name.")
    if len(names) != count:
        raise BadInput(f"The checkpoint {path.name} names {len(names)} classes; its network answers {count}.")
    try:
        return require_class_names(tuple(names[index] for index in range(count)))
    except ValueError as exc:
        raise BadInput(f"The checkpoint {path.name} cannot be exported: {exc}.") from exc


def _trained_size(network: Any, beside: dict[str, Any], stride: int, usual: int) -> SizeWh:
    """A square, rounded up to the stride as training does; the task's usual one where none is noted."""
    for noted in (beside.get("train_args"), getattr(network, "args", None)):
        values = noted.state if isinstance(noted, Remnant) else noted
        side = values.get("imgsz") if isinstance(values, dict) else None
        side = (
            max(side) if isinstance(side, list) and side and all(type(each) is int for each in side) else side
        )
        if type(side) is int and 1 <= side <= 8192:
            rounded = -(-side // stride) * stride
            return rounded, rounded
    return usual, usual


def _plain(value: object, otherwise: str) -> str:
    """What the file says of itself, where it is a plain word; else what we know."""
    return value if isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9._+-]{1,64}", value) else otherwise


def _revive(network: Any, facts: CheckpointFacts) -> None:
    """What Ultralytics' own loading puts right, after versions in which attributes were missing."""
    _require_usual_transforms(network)
    network.float().eval()
    network.args = dict(DEFAULT_CFG_DICT)  # never the file's own: they name data sets and addresses
    network.names = dict(enumerate(facts.class_names))
    network.criterion = None
    for layer in network.modules():
        if isinstance(layer, torch.nn.Upsample):
            layer.recompute_scale_factor = getattr(layer, "recompute_scale_factor", None)


def _require_usual_transforms(network: Any) -> None:
    """A classification brings its preparation of pictures along; what is served is the usual one.

    Raises Unsupported for another one.
    """
    transforms = network.__dict__.pop("transforms", None)
    if transforms is None:
        return
    kinds = ["Resize", "CenterCrop", "ToTensor", "Normalize"]
    steps = transforms.state["transforms"]
    states = [step.state or {} for step in steps]
    if (
        [step.name.rpartition(".")[2] for step in steps] != kinds
        or states[0]["interpolation"].arguments != ("bilinear",)
        or {*np.ravel(states[0]["size"])} != {*np.ravel(states[1]["size"])}
        or np.any(np.asarray(states[3]["mean"]))
        or np.any(np.asarray(states[3]["std"]) != 1)
    ):
        raise Unsupported(
            "The checkpoint prepares its pictures in a way of its own, which is not exported yet."
        )


def _is_end_to_end(head: Head) -> bool:
    return "end_to_end" in head
