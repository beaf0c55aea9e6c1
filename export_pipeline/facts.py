"""What one stage finds out and later ones need: small JSON files in the job's folder, typed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from export_pipeline.errors import ExportError
from export_pipeline.request import ExportFormat, Framework, Precision, TaskType
from export_pipeline.text import PlainText, require_class_names

MOST_BYTES: Final = 64 * 1024**2
"""Of a file of facts."""

Head = Literal[
    "yolo_raw",
    "yolo_end_to_end",
    "classification",
    "embedding",
    "yolo_raw_segmentation",
    "yolo_end_to_end_segmentation",
    "yolo_raw_pose",
    "yolo_end_to_end_pose",
    "yolo_raw_obb",
    "yolo_end_to_end_obb",
]
Side = Annotated[int, Field(ge=1, le=16384)]
SizeWh = tuple[Side, Side]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises ExportError where the file is not what the stage before left, or is too long."""
        try:
            with path.open("rb") as file:
                content = file.read(MOST_BYTES + 1)
            if len(content) > MOST_BYTES:
                raise ExportError(f"{path} has more bytes than any stage writes.")
            return cls.model_validate_json(content)
        except (OSError, ValidationError, RecursionError, MemoryError) as exc:
            raise ExportError(f"{path} is not what an earlier stage wrote: {exc}") from exc

    def to_json(self) -> bytes:
        return self.model_dump_json(indent=2).encode() + b"\n"


FactsType = TypeVar("FactsType", bound=Facts)


class CheckpointFacts(Facts):
    """heads: what the network can answer, its own predict's first. trained_size_wh: pixels."""

    framework: Framework
    framework_version: PlainText
    architecture: PlainText
    sha256: Sha256
    size_bytes: int
    task_type: TaskType
    class_names: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(require_class_names)]
    stride: Annotated[int, Field(ge=1)]
    parameters: int
    trained_size_wh: SizeWh
    heads: Annotated[tuple[Head, ...], Field(min_length=1)]


class Resize(Facts):
    method: Literal["letterbox", "stretch", "center_crop"]
    size: SizeWh
    fill_value: Annotated[int, Field(ge=0, le=255)] = 114
    stride: int
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    antialias: bool = False


class Normalize(Facts):
    """normalized = (pixel * scale - mean) / std, channel by channel."""

    mean: tuple[Finite, Finite, Finite] = (0.0, 0.0, 0.0)
    std: tuple[Finite, Finite, Finite] = (1.0, 1.0, 1.0)
    scale: Finite = 1 / 255


class Tensor(Facts):
    """shape: -1 where a dimension is dynamic. layout: one letter a dimension, as in metadata.schema.json.

    parts: for an output, which columns of its second (raw) or last (end-to-end) axis mean what, so that they
    can be judged apart: `{"boxes": (0, 4), "scores": (4, 8)}`, half-open. Empty: all of it is one part.
    """

    name: PlainText
    shape: tuple[int, ...]
    dtype: Literal["uint8", "int8", "int32", "int64", "float16", "float32"]
    layout: str
    description: PlainText
    parts: dict[str, tuple[int, int]] = {}
    parts_axis: int = 1


class ModelFacts(Facts):
    """The exported file, beside this one in the job's folder."""

    file: Annotated[str, Field(pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
    sha256: Sha256
    size_bytes: int
    export_format: ExportFormat
    precision: Precision
    opset_version: int
    ir_version: int
    head: Head
    nms_embedded: bool
    preprocessing_embedded: bool
    max_batch_size: int
    resize: Resize
    normalize: Normalize
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    made_with: dict[PlainText, PlainText]
