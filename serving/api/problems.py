"""Errors as RFC 9457 problem details. The only place that turns an error into a response."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

import orjson
from starlette.responses import Response

from serving.errors import LimitReached, VisiongateError

MEDIA_TYPE = "application/problem+json"
LONGEST_SPREAD_SECONDS = 60

_OF_A_PATH = "/:@!$&'()*+,;="


def problem_fields(error: VisiongateError, *, request_id: str, path: str) -> dict[str, Any]:
    extension = {"violated-policies": error.violated_policies} if isinstance(error, LimitReached) else {}
    return {
        # Mostly `about:blank`, whose title would be the status in words (RFC 9457, section 4.2.1): ours says
        # more, of what `code` names, and a client that knows neither still has the status.
        "type": error.type_uri,
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "instance": instance_of(path),
        "code": error.code,
        "request_id": request_id,
        **extension,
    }


def problem_response(
    error: VisiongateError, *, request_id: str, path: str, token_was_sent: bool = False
) -> Response:
    """path: as the request had it, decoded. token_was_sent: whether it is the token that a 401 refuses."""
    return Response(
        orjson.dumps(problem_fields(error, request_id=request_id, path=path)),
        status_code=error.status,
        headers=_headers(error, token_was_sent=token_was_sent),
        media_type=MEDIA_TYPE,
    )


def instance_of(path: str) -> str:
    """The path as a URI reference (RFC 3986), whatever it holds, that leads to no other host."""
    encoded = quote(path, safe=_OF_A_PATH, errors="replace")
    if encoded.startswith("//"):
        return f"/%2F{encoded[2:]}"
    return encoded if encoded.startswith("/") else f"/{encoded}"


def retry_after(seconds: float, *, spread: Callable[[], float] = random.random) -> str:
    """In whole seconds: never too early, and later by up to a second and a tenth, a minute at most.

    spread: from 0 to 1. Whoever was refused together, or waits for the same month to begin, must not come
    back together (RateLimit draft, section 8.5).
    """
    most = min(1 + seconds / 10, LONGEST_SPREAD_SECONDS)
    return str(max(1, math.ceil(seconds + spread() * most)))


def _headers(error: VisiongateError, *, token_was_sent: bool) -> Mapping[str, str]:
    headers = {}
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = retry_after(error.retry_after_seconds)
    if error.status == 401:
        # RFC 6750, section 3.1: who sent nothing has made no error.
        why = ', error="invalid_token"' if token_was_sent else ""
        headers["WWW-Authenticate"] = f'Bearer realm="visiongate"{why}'
    return headers
