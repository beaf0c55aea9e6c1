"""One request through the gateway: what came in, what goes out, and where the time went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from serving.domain.classification import Classification
from serving.domain.contract import ModelContract
from serving.domain.detections import Detections
from serving.domain.geometry import Size
from serving.domain.idempotency import IdempotencyKey
from serving.errors import RequestError

Predictions = Detections | Classification
"""What a model says of one picture, by its task."""

SentPicture = bytes | RequestError
"""An encoded file as received, or why there is none (its base64 was broken, say)."""


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """`single`: asked with one picture, answered with one (`images` answers a list, even of one).

    deadline: on `Clock.monotonic`'s line. trace_id: 32 hexadecimal digits. None: the model's default, and of
    the idempotency key, that the client named none. received_bytes: of the body, as it was sent.
    """

    request_id: str
    model: str | None
    pictures: tuple[SentPicture, ...]
    received_bytes: int
    single: bool
    deadline: float
    trace_id: str
    idempotency: IdempotencyKey | None = None
    confidence_threshold: float | None = None
    iou_threshold: float | None = None
    max_detections: int | None = None
    classes: tuple[str | int, ...] | None = None


@dataclass(frozen=True, slots=True)
class StageSeconds:
    """Where one picture's time went. Stages that a batch shares count in full for each of its pictures."""

    decode: float
    preprocess: float
    queue: float
    inference: float
    postprocess: float


@dataclass(frozen=True, slots=True)
class PictureAnswer:
    """Boxes are in pixels of the picture as sent, EXIF orientation applied; so is its size."""

    predictions: Predictions
    size: Size
    seconds: StageSeconds
    model_version: str


@dataclass(frozen=True, slots=True)
class InferenceAnswer:
    """One entry a picture, in the order they were sent; a picture that could not be used has its error."""

    contract: ModelContract
    pictures: tuple[PictureAnswer | RequestError, ...]

    @property
    def answered(self) -> tuple[PictureAnswer, ...]:
        return tuple(picture for picture in self.pictures if isinstance(picture, PictureAnswer))

    @property
    def model_version(self) -> str | None:
        """Of the first answered picture; None when no picture could be used."""
        return self.answered[0].model_version if self.answered else None


@dataclass(frozen=True, slots=True)
class RenderedAnswer:
    """What the client is sent, byte for byte, and is sent again when it repeats its `Idempotency-Key`."""

    body: bytes
    headers: Mapping[str, str]
    replayed: bool = False
