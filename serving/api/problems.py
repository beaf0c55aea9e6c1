"""Errors as RFC 9457 problem details. The only place that turns an error into a response."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from typing import Any

import orjson
from starlette.responses import Response

from serving.errors import LimitReached, VisiongateError

MEDIA_TYPE = "application/problem+json"
LONGEST_SPREAD_SECONDS = 60


def problem_fields(error: VisiongateError, *, request_id: str, instance: str) -> dict[str, Any]:
    extension = {"violated-policies": error.violated_policies} if isinstance(error, LimitReached) else {}
    return {
        "type": error.type_uri,
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "instance": instance,
        "code": error.code,
        "request_id": request_id,
        **extension,
    }


def problem_response(error: VisiongateError, *, request_id: str, instance: str) -> Response:
    return Response(
        orjson.dumps(problem_fields(error, request_id=request_id, instance=instance)),
        status_code=error.status,
        headers=_headers(error),
        media_type=MEDIA_TYPE,
    )


def retry_after(seconds: float, *, spread: Callable[[], float] = random.random) -> str:
    """In whole seconds: never too early, and later by up to a second and a tenth, a minute at most.

    spread: from 0 to 1. Whoever was refused together, or waits for the same month to begin, must not come
    back together (RateLimit draft, section 8.5).
    """
    most = min(1 + seconds / 10, LONGEST_SPREAD_SECONDS)
    return str(max(1, math.ceil(seconds + spread() * most)))


def _headers(error: VisiongateError) -> Mapping[str, str]:
    headers = {}
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = retry_after(error.retry_after_seconds)
    if error.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="visiongate"'  # RFC 6750, section 3
    return headers
