"""What the API takes and gives, as types: validated on the way in, documented on the way out."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from serving.domain.usage import GroupBy

MAX_CLASSES = 1000

Unit = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
ClassSelector = Annotated[str, StringConstraints(min_length=1, max_length=200)] | Annotated[int, Field(ge=0)]


class InferenceOptions(BaseModel):
    """The options that every body form takes. Text from a query or a form field is read as what it spells."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = Field(
        default=None, description="Deployment id or name; may be left out where the key is allowed on one."
    )
    confidence_threshold: Unit | None = Field(
        default=None, description="Keep what has more confidence; of a classifier, 0 keeps every class."
    )
    iou_threshold: Unit | None = Field(
        default=None, description="NMS drops boxes that overlap more. Not for models without NMS."
    )
    max_detections: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        default=None, description="In one picture; of a classifier, how many of its most confident classes."
    )
    classes: Annotated[tuple[ClassSelector, ...], Field(max_length=MAX_CLASSES)] | None = Field(
        default=None, description="Names or ids to keep; others take none of their places."
    )


class InferenceBody(InferenceOptions):
    """The JSON form: base64 pictures, with or without a `data:` prefix."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())

    image: str | None = None
    images: Annotated[list[str], Field(min_length=1)] | None = None
    # JSON has no tuple: strict mode would refuse its list.
    classes: Annotated[tuple[ClassSelector, ...], Field(max_length=MAX_CLASSES, strict=False)] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> InferenceBody:
        if (self.image is None) == (self.images is None):
            raise ValueError("send either 'image' or 'images'")
        return self


class PredictedClass(BaseModel):
    """One of a classifier's most confident classes."""

    model_config = ConfigDict(populate_by_name=True)

    class_name: str = Field(alias="class")
    class_id: int
    confidence: float


class DetectedObject(PredictedClass):
    """What a detector found."""

    bbox: tuple[float, float, float, float] = Field(
        description="x_min, y_min, x_max, y_max in pixels of the picture as sent, EXIF orientation applied"
    )


class PictureSize(BaseModel):
    width: int
    height: int


class TimingsMs(BaseModel):
    decode: float
    preprocess: float
    queue: float
    inference: float
    postprocess: float


class PictureResult(BaseModel):
    predictions: list[DetectedObject] | list[PredictedClass] = Field(description="Most confident first.")
    image: PictureSize
    timings_ms: TimingsMs


class InferenceResult(PictureResult):
    """The answer to one picture."""

    latency_ms: float
    model: str
    model_version: str
    request_id: str


class PictureError(BaseModel):
    code: str
    detail: str


class PictureFailure(BaseModel):
    error: PictureError


class InferenceResults(BaseModel):
    """The answer to `images`: one entry a picture, in the order they were sent."""

    results: list[PictureResult | PictureFailure]
    latency_ms: float
    model: str
    model_version: str | None
    request_id: str


class ModelDescription(BaseModel):
    id: str
    name: str
    task: Literal["detection", "classification"]
    framework: str
    version: str
    input_size: PictureSize
    classes: list[str]
    defaults: dict[str, float | int]
    contract: str = Field(description="SHA-256 of metadata.json, answered as X-Model-Contract")


class ModelDetails(ModelDescription):
    performance: dict[str, Any] | None = Field(description="Measured by the export; null where it was not")
    validation: dict[str, Any] | None = Field(
        description="How far the served model is from its checkpoint; null where nothing was compared"
    )


class ModelList(BaseModel):
    models: list[ModelDescription]


Amount = Annotated[str, Field(description="In units of the operator's currency, six decimals")]


class UsageRow(BaseModel):
    group: str = Field(
        description="What it is of, by `group_by`: a deployment, a day `2026-11-21`; '' of all"
    )
    requests: int
    pictures: int = Field(description="Those that were answered, and are billed")
    pixels: int
    received_bytes: int
    inference_microseconds: int
    amount: Amount
    amount_micros: int


class Usage(BaseModel):
    model_config = ConfigDict(populate_by_name=True)

    begin: AwareDatetime = Field(alias="from")
    end: AwareDatetime = Field(alias="to", description="Excluded")
    group_by: GroupBy
    rows: list[UsageRow]


class InvoiceLine(BaseModel):
    user: str
    key_id: str
    tier: str
    deployment: str | None
    what: Literal["pictures", "subscription"]
    quantity: int
    unit_price: Amount = Field(description="Of 1000 pictures, or of a month")
    unit_price_micros: int
    amount: Amount
    amount_micros: int


class Invoice(BaseModel):
    month: str = Field(examples=["2026-11"])
    total: Amount
    total_micros: int
    lines: list[InvoiceLine]


class Health(BaseModel):
    status: Literal["ok"]


class Readiness(BaseModel):
    ready: bool
    checks: dict[str, bool] = Field(description="What it cannot serve without")
    degraded: list[str] = Field(description="What it does without meanwhile: `accounts` is its own limits")


class Problem(BaseModel):
    """RFC 9457 problem details."""

    model_config = ConfigDict(populate_by_name=True)

    type: str
    title: str
    status: int
    detail: str
    instance: str = Field(json_schema_extra={"format": "uri-reference"})
    code: str = Field(description="Stable: what a client may branch on")
    request_id: str
    violated_policies: list[str] = Field(
        default_factory=list,
        alias="violated-policies",
        description="Of a 429 only: the limits that were reached, by their names in `RateLimit-Policy`",
    )


PICTURE_MEDIA_TYPES = ("image/jpeg", "image/png", "image/webp", "image/bmp")

_OPTION_PROPERTIES: dict[str, Any] = InferenceOptions.model_json_schema()["properties"]

INFERENCE_REQUEST_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {"schema": InferenceBody.model_json_schema()},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["image"],
                "properties": {
                    **_OPTION_PROPERTIES,
                    "image": {"type": "array", "items": {"type": "string", "format": "binary"}},
                },
            }
        },
        **{
            media_type: {"schema": {"type": "string", "format": "binary"}}
            for media_type in PICTURE_MEDIA_TYPES
        },
    },
}

INFERENCE_QUERY_PARAMETERS: list[dict[str, Any]] = [
    {
        "name": name,
        "in": "query",
        "required": False,
        "schema": schema,
        "description": "For a raw picture body only.",
    }
    for name, schema in _OPTION_PROPERTIES.items()
]
