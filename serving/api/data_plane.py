"""`/v1`: what a bearer key reaches."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from serving.api import openapi, schemas
from serving.api.answers import inference_response, model_description, model_details, rendered
from serving.api.body import BodyLimits, held_body
from serving.api.context import RequestContext, context_of
from serving.api.crowd import Crowd
from serving.api.probes import Readiness, probe_router
from serving.api.queries import documented, parsed
from serving.api.request_forms import read_inference_request
from serving.api.routes import DirectRoute, bearer, json_response
from serving.api.usage_queries import DeploymentUsageParameters, OwnUsageParameters
from serving.budget import Budget
from serving.domain.inference import InferenceAnswer, InferenceRequest, RenderedAnswer
from serving.domain.invoice_forms import usage_json
from serving.domain.key_record import can_be_a_name
from serving.domain.tenant import Principal
from serving.errors import BackendUnavailable, DeadlineExceeded, ModelNotFound, Unauthenticated
from serving.pipeline import Gateway
from serving.ports import Clock, Ledger
from serving.threads import PriorityThreads


@dataclass(frozen=True, slots=True)
class DataPlane:
    gateway: Gateway
    ledger: Ledger
    clock: Clock
    crowd: Crowd
    body_limits: BodyLimits
    held_bytes: Budget
    body_threads: PriorityThreads
    request_timeout_seconds: float
    readiness: Callable[[], Awaitable[Readiness]]


def data_plane_router(plane: DataPlane) -> APIRouter:
    """With the probes, which need no key."""
    router = APIRouter(route_class=DirectRoute)
    _add_inference(router, plane)
    _add_models(router, plane)
    _add_usage(router, plane)
    router.include_router(probe_router(plane.readiness))
    return router


def _add_inference(router: APIRouter, plane: DataPlane) -> None:
    docs: dict[str, Any] = {
        "response_model": schemas.InferenceResult | schemas.InferenceResults,
        "responses": openapi.answered(
            "What the model says of each picture: boxes of a detector, classes of a classifier",
            openapi.RATE_LIMITS,
            openapi.CONTRACT,
            openapi.REPLAYED,
        )
        | openapi.refused(
            *(401, 403, 404, 409, 413, 415, 422, 429, 504),
            limited=True,
            codes={
                422: ("invalid_request", "image_undecodable", "image_too_large", "idempotency_key_reused")
            },
        ),
        "openapi_extra": {
            "requestBody": schemas.INFERENCE_REQUEST_BODY,
            "parameters": schemas.INFERENCE_QUERY_PARAMETERS + openapi.INFERENCE_FIELDS,
            "security": openapi.BY_API_KEY,
        },
        "tags": ["inference"],
    }

    @router.post("/v1/infer", summary="Detect objects in pictures, or classify them", **docs)
    async def infer(request: Request) -> Response:
        return await _infer(plane, request, deployment_id=None)

    @router.post("/v1/infer/{deployment_id}", summary="The same, by the model in the path", **docs)
    async def infer_on(request: Request, deployment_id: str) -> Response:
        return await _infer(plane, request, deployment_id=deployment_id)


def _add_models(router: APIRouter, plane: DataPlane) -> None:
    def docs(description: str, *refusals: int) -> dict[str, Any]:
        return {
            "responses": openapi.answered(description, openapi.RATE_LIMITS)
            | openapi.refused(*refusals, limited=True),
            "openapi_extra": {"security": openapi.BY_API_KEY},
            "tags": ["models"],
        }

    @router.get(
        "/v1/models",
        summary="Models that this key may use: what each takes, and its classes and defaults",
        response_model=schemas.ModelList,
        **docs("Those that are being served now", 401),
    )
    async def models(request: Request) -> Response:
        principal = await _authenticate(plane, request)
        listed = [model_description(model) for model in plane.gateway.models(principal)]
        return json_response({"models": listed})

    @router.get(
        "/v1/models/{name}",
        summary="One model: what it takes and answers, how fast it was, and what its export proved",
        response_model=schemas.ModelDetails,
        **docs("The model", 401, 403, 404),
    )
    async def model(request: Request, name: str) -> Response:
        principal = await _authenticate(plane, request)
        return json_response(model_details(plane.gateway.model(principal, name)))

    # RFC 9110, section 9.1: whoever answers GET answers HEAD.
    router.add_api_route("/v1/models", models, methods=["HEAD"], include_in_schema=False)
    router.add_api_route("/v1/models/{name}", model, methods=["HEAD"], include_in_schema=False)


def _add_usage(router: APIRouter, plane: DataPlane) -> None:
    def docs(asks: type[BaseModel], *refusals: int) -> dict[str, Any]:
        return {
            "response_model": schemas.Usage,
            "responses": openapi.answered(
                "What is in the ledger: an answer gets there within seconds", openapi.RATE_LIMITS
            )
            | openapi.refused(*refusals, limited=True),
            "openapi_extra": {"security": openapi.BY_API_KEY, "parameters": documented(asks)},
            "tags": ["usage"],
        }

    @router.get("/v1/usage", summary="What this key was used for", **docs(OwnUsageParameters, 401, 422))
    async def usage(request: Request) -> Response:
        principal = await _authenticate(plane, request)
        query = parsed(OwnUsageParameters, request.query_params).query(plane.clock.now())
        query = replace(query, key_id=principal.key_id)
        return json_response(usage_json(await plane.ledger.usage(query), query))

    @router.get(
        "/v1/deployments/{deployment_id}/usage",
        summary="What this key used one deployment for",
        **docs(DeploymentUsageParameters, 401, 403, 404, 422),
    )
    async def deployment_usage(request: Request, deployment_id: str) -> Response:
        principal = await _authenticate(plane, request)
        query = parsed(DeploymentUsageParameters, request.query_params).query(plane.clock.now())
        if not can_be_a_name(deployment_id):
            raise ModelNotFound(deployment_id)
        query = replace(query, key_id=principal.key_id, deployment=deployment_id)
        rows = await plane.ledger.usage(query)
        if not any(row.requests for row in rows):
            _require_usable(plane, principal, deployment_id)
        return json_response(usage_json(rows, query))

    for path, get in (("/v1/usage", usage), ("/v1/deployments/{deployment_id}/usage", deployment_usage)):
        router.add_api_route(path, get, methods=["HEAD"], include_in_schema=False)


def _require_usable(plane: DataPlane, principal: Principal, name: str) -> None:
    """So that a typo does not read as nothing used; what is billed is shown, even of a model that is gone.

    Raises Forbidden, ModelNotFound, ModelRefused.
    """
    with suppress(BackendUnavailable):  # it is being loaded
        plane.gateway.model(principal, name)


async def _infer(plane: DataPlane, request: Request, *, deployment_id: str | None) -> Response:
    context = context_of(request)
    principal = await _authenticate(plane, request)
    priority = principal.tier.priority
    plane.crowd.refuse_if_full(priority=priority)
    body_begin = context.elapsed_seconds
    async with held_body(request, plane.body_limits, plane.held_bytes, priority=priority) as body:
        context.stage_seconds["body"] = context.elapsed_seconds - body_begin
        asked = await _read(plane, request, body, principal, deployment_id=deployment_id)
        answer = await plane.gateway.infer(
            principal,
            asked,
            partial(_render, context, single=asked.single),
            note_limits=partial(setattr, context, "limits"),
        )
        context.facts.update(replayed=answer.replayed)
        return inference_response(answer)


async def _read(
    plane: DataPlane, request: Request, body: bytes, principal: Principal, *, deployment_id: str | None
) -> InferenceRequest:
    context = context_of(request)
    try:
        async with asyncio.timeout(plane.request_timeout_seconds - context.elapsed_seconds):
            return await read_inference_request(
                request,
                body,
                request_id=context.request_id,
                deployment_id=deployment_id,
                deadline=context.started + plane.request_timeout_seconds,
                principal=principal,
                threads=plane.body_threads,
            )
    except TimeoutError as exc:  # all that time, the threads were the more urgent's
        raise DeadlineExceeded from exc


def _render(context: RequestContext, answer: InferenceAnswer, *, single: bool) -> RenderedAnswer:
    context.facts.update(
        model=answer.contract.name, model_version=answer.model_version, pictures=len(answer.pictures)
    )
    _note_stages(context, answer)
    return rendered(answer, context, single=single)


async def _authenticate(plane: DataPlane, request: Request) -> Principal:
    context = context_of(request)
    api_key = bearer(request)
    if api_key is None:
        raise Unauthenticated
    with context.stage("auth"):
        principal = await plane.gateway.authenticate(api_key)
    context.authenticated(principal, partial(plane.gateway.limits, principal))
    return principal


def _note_stages(context: RequestContext, answer: InferenceAnswer) -> None:
    """A list of pictures is timed by its slowest picture in each stage: they ran side by side."""
    for stage in ("decode", "preprocess", "queue", "inference", "postprocess"):
        context.stage_seconds[stage] = max(
            (getattr(picture.seconds, stage) for picture in answer.answered), default=0.0
        )
