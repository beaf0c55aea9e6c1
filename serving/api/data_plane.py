"""`/v1` and the probes: what a bearer key reaches."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson
from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from serving.api import schemas
from serving.api.answers import inference_response, model_description, model_details, rendered
from serving.api.body import BodyLimits, held_body
from serving.api.context import RequestContext, context_of
from serving.api.request_forms import read_inference_request
from serving.budget import Budget
from serving.domain.inference import InferenceAnswer, RenderedAnswer
from serving.domain.tenant import Principal
from serving.errors import Unauthenticated
from serving.pipeline import Gateway

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": what, "model": schemas.Problem}
    for status, what in {
        401: "unauthenticated, key_expired, key_revoked",
        403: "forbidden",
        404: "model_not_found",
        413: "payload_too_large",
        415: "unsupported_media_type",
        422: "invalid_request, image_undecodable, image_too_large",
        429: "rate_limited, quota_exceeded",
        500: "internal",
        503: "overloaded, backend_unavailable",
        504: "timeout",
    }.items()
}

_ANSWERED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "What the model says of each picture: boxes of a detector, classes of a classifier",
        "headers": {
            "X-Model-Contract": {
                "description": "SHA-256 of the metadata.json that the answer was made with",
                "schema": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
            }
        },
    }
}


@dataclass(frozen=True, slots=True)
class DataPlane:
    gateway: Gateway
    body_limits: BodyLimits
    held_bytes: Budget
    request_timeout_seconds: float
    readiness: Callable[[], Awaitable[dict[str, bool]]]


class _DirectRoute(APIRoute):
    """Calls its endpoint with the request and the path's parameters, and does nothing else.

    Our handlers read and validate by themselves. FastAPI's own way there, with dependencies, exit stacks and
    a second look at the body, takes a tenth of the gateway's time for a request.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        async def handle(request: Request) -> Response:
            response: Response = await self.endpoint(request, **request.path_params)
            return response

        return handle


def data_plane_router(plane: DataPlane) -> APIRouter:
    router = APIRouter(route_class=_DirectRoute)
    infer_docs: dict[str, Any] = {
        "response_model": schemas.InferenceResult | schemas.InferenceResults,
        "responses": _ANSWERED | _ERRORS,
        "openapi_extra": {
            "requestBody": schemas.INFERENCE_REQUEST_BODY,
            "parameters": schemas.INFERENCE_QUERY_PARAMETERS,
            "security": [{"bearer": []}],
        },
        "tags": ["inference"],
    }

    @router.post("/v1/infer", summary="Detect objects in pictures, or classify them", **infer_docs)
    async def infer(request: Request) -> Response:
        return await _infer(plane, request, deployment_id=None)

    @router.post("/v1/infer/{deployment_id}", summary="The same, by the model in the path", **infer_docs)
    async def infer_on(request: Request, deployment_id: str) -> Response:
        return await _infer(plane, request, deployment_id=deployment_id)

    @router.get(
        "/v1/models",
        summary="Models that this key may use: what each takes, and its classes and defaults",
        response_model=schemas.ModelList,
        responses={401: _ERRORS[401]},
        openapi_extra={"security": [{"bearer": []}]},
        tags=["models"],
    )
    async def models(request: Request) -> Response:
        principal = await _authenticate(plane, request)
        return _json({"models": [model_description(model) for model in plane.gateway.models(principal)]})

    @router.get(
        "/v1/models/{name}",
        summary="One model: what it takes and answers, how fast it was, and what its export proved",
        response_model=schemas.ModelDetails,
        responses={status: _ERRORS[status] for status in (401, 403, 404, 503)},
        openapi_extra={"security": [{"bearer": []}]},
        tags=["models"],
    )
    async def model(request: Request, name: str) -> Response:
        principal = await _authenticate(plane, request)
        return _json(model_details(plane.gateway.model(principal, name)))

    @router.get("/healthz", summary="The process is up", response_model=schemas.Health, tags=["probes"])
    async def healthz(_: Request) -> Response:
        return _json({"status": "ok"})

    @router.get("/readyz", summary="It can serve", response_model=schemas.Readiness, tags=["probes"])
    async def readyz(_: Request) -> Response:
        checks = await plane.readiness()
        ready = all(checks.values())
        return _json({"ready": ready, "checks": checks}, status=200 if ready else 503)

    # RFC 9110, section 9.1: whoever answers GET answers HEAD.
    for path, get in (
        ("/healthz", healthz),
        ("/readyz", readyz),
        ("/v1/models", models),
        ("/v1/models/{name}", model),
    ):
        router.add_api_route(path, get, methods=["HEAD"], include_in_schema=False)
    return router


async def _infer(plane: DataPlane, request: Request, *, deployment_id: str | None) -> Response:
    context = context_of(request)
    deadline = context.started + plane.request_timeout_seconds
    principal = await _authenticate(plane, request)
    body_begin = context.elapsed_seconds
    async with held_body(request, plane.body_limits, plane.held_bytes) as body:
        context.stage_seconds["body"] = context.elapsed_seconds - body_begin
        asked = await read_inference_request(
            request,
            body,
            request_id=context.request_id,
            deployment_id=deployment_id,
            deadline=deadline,
            max_pictures=principal.tier.max_pictures_per_request,
        )
        answer = await plane.gateway.infer(
            principal,
            asked,
            partial(_render, context, single=asked.single),
            note_limits=partial(setattr, context, "limits"),
        )
        return inference_response(answer)


def _render(context: RequestContext, answer: InferenceAnswer, *, single: bool) -> RenderedAnswer:
    context.facts.update(
        model=answer.contract.name, model_version=answer.model_version, pictures=len(answer.pictures)
    )
    _note_stages(context, answer)
    return rendered(answer, context, single=single)


async def _authenticate(plane: DataPlane, request: Request) -> Principal:
    context = context_of(request)
    scheme, _, api_key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not api_key:
        raise Unauthenticated
    with context.stage("auth"):
        principal = await plane.gateway.authenticate(api_key.strip())
    context.facts.update(key_id=principal.key_id, user=principal.user, tier=principal.tier.name)
    return principal


def _note_stages(context: RequestContext, answer: InferenceAnswer) -> None:
    """A list of pictures is timed by its slowest picture in each stage: they ran side by side."""
    for stage in ("decode", "preprocess", "queue", "inference", "postprocess"):
        context.stage_seconds[stage] = max(
            (getattr(picture.seconds, stage) for picture in answer.answered), default=0.0
        )


def _json(body: dict[str, Any], *, status: int = 200) -> Response:
    return Response(orjson.dumps(body), status_code=status, media_type="application/json")
