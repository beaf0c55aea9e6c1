"""What the published schema says of every route: its refusals, its header fields, and who may call it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from serving.api import schemas
from serving.api.problems import MEDIA_TYPE
from serving.api.queries import documented
from serving.domain.idempotency import KEPT_SECONDS, MAX_KEY_CHARACTERS

Responses = dict[int | str, dict[str, Any]]

BY_API_KEY: list[dict[str, list[str]]] = [{"apiKey": []}]
BY_OPERATOR: list[dict[str, list[str]]] = [{"adminToken": []}]
BY_OWNER: list[dict[str, list[str]]] = [{"adminToken": []}, {"userToken": []}]


def _field(description: str, **schema: Any) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string", **schema}}


REQUEST_ID = {
    "X-Request-ID": _field("Names this request in logs; of the answer that was billed, the usage event")
}
RATE_LIMITS = {
    "RateLimit-Policy": _field(
        "The limits of this key's tier: `burst` (a token bucket) and `month` (a quota), in pictures, and "
        "`concurrent`, in requests, as far as it has them; draft-ietf-httpapi-ratelimit-headers-11",
        example='"burst";q=20;w=12;visiongate-qu="pictures", "concurrent";q=4;qu="concurrent-requests"',
    ),
    "RateLimit": _field(
        "What is left of each, and in how many seconds it is more; left out while that cannot be told",
        example='"burst";r=19;t=1, "concurrent";r=3',
    ),
}
RETRY_AFTER = {"Retry-After": _field("Seconds; not earlier than `t` of the limit that was reached")}
CHALLENGE = {"WWW-Authenticate": _field("RFC 6750; with `error` where a token was sent, which is no good")}
ALLOW = {"Allow": _field("The methods that the path takes", example="GET, HEAD")}
LOCATION = {"Location": _field("Of what was made", format="uri-reference")}
NEVER_STORED = {"Cache-Control": _field("`no-store`: the answer holds a secret", const="no-store")}
CONTRACT = {
    "X-Model-Contract": _field(
        "SHA-256 of the metadata.json that the answer was made with", pattern="^[0-9a-f]{64}$"
    )
}
REPLAYED = {
    "Idempotency-Replayed": _field(
        "`true` where this is the answer to an earlier request with the same key: its body, with its "
        "`request_id`, byte for byte; nothing is billed",
        const="true",
    )
}
INFERENCE_FIELDS: list[dict[str, Any]] = [
    {
        "name": "Idempotency-Key",
        "in": "header",
        "required": False,
        # In quotes, with a backslash before each of its characters that is one itself, or a quote.
        "schema": {"type": "string", "minLength": 1, "maxLength": 2 * MAX_KEY_CHARACTERS + 2},
        "example": '"8e03978e-40d5-43e8-bc93-6894a57f9324"',
        "description": (
            "Asks for one answer and one bill, however often the request is sent "
            "(draft-ietf-httpapi-idempotency-key-header-07). A string of 1 to "
            f"{MAX_KEY_CHARACTERS} characters in quotes; without them, the characters of a token. It is kept "
            f"for {KEPT_SECONDS // 3600} hours from the answer; a request that failed leaves it free. Two "
            "requests are the same if their model, options and pictures are, whatever form they come in and "
            "whatever order their classes have. One that names no model is the same as one that does, where "
            "the API key may use no other. What was answered is answered again, even if it is refused by now."
        ),
    },
    {
        "name": "traceparent",
        "in": "header",
        "required": False,
        "schema": {"type": "string"},
        "example": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "description": (
            "W3C Trace Context: its trace id goes into the usage event; without one, the request's id."
        ),
    },
]

_CODES = {
    401: ("unauthenticated", "key_expired", "key_revoked"),
    403: ("forbidden",),
    404: ("model_not_found",),
    409: ("idempotency_key_in_use", "answer_not_kept"),
    413: ("payload_too_large",),
    415: ("unsupported_media_type",),
    422: ("invalid_request",),
    429: ("rate_limited", "quota_exceeded"),
    500: ("internal",),
    503: ("overloaded", "backend_unavailable"),
    504: ("timeout",),
}
_OF_CONTROL: dict[int, tuple[str, ...]] = {401: ("unauthenticated",), 404: ("key_not_found",)}


def answered(description: str, *fields: dict[str, Any], status: int = 200) -> Responses:
    headers: dict[str, Any] = {**REQUEST_ID}
    for each in fields:
        headers |= each
    return {status: {"description": description, "headers": headers}}


def refused(
    *statuses: int, limited: bool = False, codes: dict[int, tuple[str, ...]] | None = None
) -> Responses:
    """Of these statuses and of 500 and 503, which every route has. codes: where they are not the usual ones.

    limited: whether refusals of a valid API key say what is left of its limits.
    """
    responses: Responses = {}
    for status in sorted({*statuses, 500, 503}):
        headers: dict[str, Any] = {**REQUEST_ID}
        if status == 401:
            headers |= CHALLENGE
        elif limited:
            headers |= RATE_LIMITS
        if status in (409, 429, 503):
            headers |= RETRY_AFTER
        described = ", ".join((codes or {}).get(status, _CODES[status]))
        responses[status] = _problem(described, headers)
    return responses


def _problem(description: str, headers: dict[str, Any]) -> dict[str, Any]:
    # By reference: as a model of each of them, it would be built anew a hundred times at the start.
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {"description": description, "content": content, "headers": headers}


def control(
    description: str,
    *refusals: int,
    operator: bool = False,
    status: int = 200,
    takes: type[BaseModel] | None = None,
    asks: type[BaseModel] | None = None,
    also: dict[str, str] | None = None,
    fields: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """A route of the control plane. operator: theirs alone. takes, asks: its body and its query.

    fields: what its answer has in the header besides the usual. also: examples of other media types that it
    answers with, besides JSON.
    """
    extra: dict[str, Any] = {"security": BY_OPERATOR if operator else BY_OWNER}
    if takes is not None:
        content = {"application/json": {"schema": takes.model_json_schema()}}
        extra["requestBody"] = {"required": True, "content": content}
    if asks is not None:
        extra["parameters"] = documented(asks)
    success = answered(description, *fields, status=status)
    if also is not None:
        success[status]["content"] = {
            media_type: {"schema": {"type": "string"}, "example": example}
            for media_type, example in also.items()
        }
    return {
        "responses": success | refused(*refusals, codes=_OF_CONTROL),
        "openapi_extra": extra,
    }


class DocumentedApp(FastAPI):
    """Publishes what FastAPI makes of the routes, completed and corrected, once somebody asks for it."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = _complete(super().openapi())
        return self.openapi_schema


def _complete(schema: dict[str, Any]) -> dict[str, Any]:
    components = schema.setdefault("components", {})
    components["securitySchemes"] = {
        "apiKey": {"type": "http", "scheme": "bearer", "description": "An API key, `pk_…`."},
        "adminToken": {"type": "http", "scheme": "bearer", "description": "The operator's token."},
        "userToken": {
            "type": "http",
            "scheme": "bearer",
            "bearerFormat": "JWT",
            "description": "Signed for this gateway; `sub` is the user, who sees and changes their own only.",
        },
    }
    named = components.setdefault("schemas", {})
    named["Problem"] = schemas.Problem.model_json_schema()
    for path in schema["paths"].values():
        for operation in path.values():
            _forget_foreign_refusals(operation["responses"])
            # Of the path, not of the operation; but where else would a client look?
            operation["responses"]["405"] = _problem("method_not_allowed", REQUEST_ID | ALLOW)
    for unused in ("HTTPValidationError", "ValidationError"):
        named.pop(unused, None)
    return schema


def _forget_foreign_refusals(responses: dict[str, Any]) -> None:
    """FastAPI promises its own 422 for every route with a path parameter; ours never answers so."""
    for status, response in list(responses.items()):
        schema = response.get("content", {}).get("application/json", {}).get("schema", {})
        if schema.get("$ref", "").endswith("/HTTPValidationError"):
            del responses[status]
