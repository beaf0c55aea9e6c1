"""Domain answers as JSON. Written with orjson on plain dicts: this runs once a picture."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.responses import Response

from serving.api.context import RequestContext
from serving.domain.contract import ModelContract
from serving.domain.detections import Detections
from serving.domain.inference import (
    InferenceAnswer,
    PictureAnswer,
    Predictions,
    RenderedAnswer,
    StageSeconds,
)
from serving.errors import RequestError


def rendered(answer: InferenceAnswer, context: RequestContext, *, single: bool) -> RenderedAnswer:
    names = answer.contract.class_names
    body = {
        "latency_ms": _ms(context.elapsed_seconds),
        "model": answer.contract.name,
        "model_version": answer.model_version,
        "request_id": context.request_id,
    }
    if single:
        body = {**_picture(answer.pictures[0], names), **body}
    else:
        body = {"results": [_picture(picture, names) for picture in answer.pictures], **body}
    return RenderedAnswer(orjson.dumps(body), {"X-Model-Contract": answer.contract.sha256})


def inference_response(answer: RenderedAnswer) -> Response:
    headers = {**answer.headers, **({"Idempotency-Replayed": "true"} if answer.replayed else {})}
    return Response(answer.body, media_type="application/json", headers=headers)


def model_description(contract: ModelContract) -> dict[str, Any]:
    info, size = contract.model_info, contract.input_size
    return {
        "id": contract.name,
        "name": contract.name,
        "task": info.task_type,
        "framework": info.framework,
        "version": info.version,
        "input_size": {"width": size.width, "height": size.height},
        "classes": list(contract.class_names),
        "defaults": _defaults(contract),
        "contract": contract.sha256,
    }


def model_details(contract: ModelContract) -> dict[str, Any]:
    """The description, and what the export measured and proved; null where it did not."""
    return {
        **model_description(contract),
        "performance": contract.performance,
        "validation": contract.validation,
    }


def _defaults(contract: ModelContract) -> dict[str, float | int]:
    options = contract.options()
    defaults = {
        "confidence_threshold": options.confidence_threshold,
        "max_detections": options.max_detections,
    }
    if contract.takes_iou_threshold:
        defaults["iou_threshold"] = options.iou_threshold
    return defaults


def _picture(picture: PictureAnswer | RequestError, names: tuple[str, ...]) -> dict[str, Any]:
    if isinstance(picture, RequestError):
        return {"error": {"code": picture.code, "detail": picture.detail}}
    return {
        "predictions": _predictions(picture.predictions, names),
        "image": {"width": picture.size.width, "height": picture.size.height},
        "timings_ms": _timings(picture.seconds),
    }


def _predictions(found: Predictions, names: tuple[str, ...]) -> list[dict[str, Any]]:
    rows = zip(found.class_id.tolist(), found.confidence.tolist(), strict=True)
    predictions: list[dict[str, Any]] = [
        {"class": names[class_id], "class_id": class_id, "confidence": round(confidence, 6)}
        for class_id, confidence in rows
    ]
    if isinstance(found, Detections):
        for prediction, xyxy in zip(predictions, found.xyxy.tolist(), strict=True):
            prediction["bbox"] = [round(side, 3) for side in xyxy]
    return predictions


def _timings(seconds: StageSeconds) -> dict[str, float]:
    return {
        "decode": _ms(seconds.decode),
        "preprocess": _ms(seconds.preprocess),
        "queue": _ms(seconds.queue),
        "inference": _ms(seconds.inference),
        "postprocess": _ms(seconds.postprocess),
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
