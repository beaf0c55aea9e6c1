"""Domain answers as JSON. Written with orjson on plain dicts: this runs once a picture."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.responses import Response

from serving.api.context import RequestContext
from serving.domain.contract import ModelContract
from serving.domain.detections import Detections
from serving.domain.inference import InferenceAnswer, PictureAnswer, StageSeconds
from serving.errors import RequestError


def inference_response(answer: InferenceAnswer, context: RequestContext, *, single: bool) -> Response:
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
    return Response(
        orjson.dumps(body),
        media_type="application/json",
        headers={"X-Model-Contract": answer.contract.sha256},
    )


def model_description(contract: ModelContract) -> dict[str, Any]:
    info, nms, size = contract.model_info, contract.postprocessing.nms, contract.input_size
    return {
        "id": contract.name,
        "name": contract.name,
        "task": info.task_type,
        "framework": info.framework,
        "version": info.version,
        "input_size": {"width": size.width, "height": size.height},
        "classes": list(contract.class_names),
        "defaults": {
            "confidence_threshold": nms.confidence_threshold,
            "iou_threshold": nms.iou_threshold,
            "max_detections": nms.max_detections,
        },
        "contract": contract.sha256,
    }


def _picture(picture: PictureAnswer | RequestError, names: tuple[str, ...]) -> dict[str, Any]:
    if isinstance(picture, RequestError):
        return {"error": {"code": picture.code, "detail": picture.detail}}
    return {
        "predictions": _predictions(picture.detections, names),
        "image": {"width": picture.size.width, "height": picture.size.height},
        "timings_ms": _timings(picture.seconds),
    }


def _predictions(found: Detections, names: tuple[str, ...]) -> list[dict[str, Any]]:
    rows = zip(found.xyxy.tolist(), found.confidence.tolist(), found.class_id.tolist(), strict=True)
    return [
        {
            "class": names[class_id],
            "class_id": class_id,
            "confidence": round(confidence, 6),
            "bbox": [round(side, 3) for side in xyxy],
        }
        for xyxy, confidence, class_id in rows
    ]


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
