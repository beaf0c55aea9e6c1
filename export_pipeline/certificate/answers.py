"""The gateway's answer to one picture, and the Python wrapper's, as predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from export_pipeline.errors import ExportError
from export_pipeline.predictions import Predictions


class _Read(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Prediction(_Read):
    class_name: str = Field(alias="class")
    class_id: Annotated[int, Field(ge=0)]
    confidence: float
    bbox: tuple[float, float, float, float] | None = None


class _Size(_Read):
    width: int
    height: int


class _Body(_Read):
    predictions: list[_Prediction]
    image: _Size


def predictions_of(body: Mapping[str, Any], class_names: Sequence[str], *, boxes: bool) -> Predictions:
    """The form of the gateway's answer, and of the Python wrapper's. Raises ExportError where it is not.

    A class whose id and name do not belong together is as wrong as another class: refused.
    """
    try:
        read = _Body.model_validate(body)
    except ValidationError as exc:
        raise ExportError(
            f"An answer is not one: {exc.errors(include_url=False, include_input=False)}"
        ) from exc
    for each in read.predictions:
        if each.class_id >= len(class_names) or class_names[each.class_id] != each.class_name:
            raise ExportError(f"An answer calls class {each.class_id} {each.class_name!r}.")
        if (each.bbox is None) == boxes:
            raise ExportError("An answer has boxes where there are none, or the other way round.")
    return Predictions(
        read.image.width,
        read.image.height,
        np.array([each.confidence for each in read.predictions], np.float32),
        np.array([each.class_id for each in read.predictions], np.int64),
        np.array([each.bbox for each in read.predictions], np.float32).reshape(-1, 4) if boxes else None,
    )
