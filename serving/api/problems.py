"""Errors as RFC 9457 problem details. The only place that turns an error into a response."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import orjson
from starlette.responses import Response

from serving.errors import VisiongateError

MEDIA_TYPE = "application/problem+json"


def problem_fields(error: VisiongateError, *, request_id: str, instance: str) -> dict[str, Any]:
    return {
        "type": error.type_uri,
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "instance": instance,
        "code": error.code,
        "request_id": request_id,
    }


def problem_response(error: VisiongateError, *, request_id: str, instance: str) -> Response:
    return Response(
        orjson.dumps(problem_fields(error, request_id=request_id, instance=instance)),
        status_code=error.status,
        headers=_headers(error),
        media_type=MEDIA_TYPE,
    )


def _headers(error: VisiongateError) -> Mapping[str, str]:
    headers = {}
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_seconds)))
    if error.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="visiongate"'  # RFC 6750, section 3
    return headers
