"""The ASGI application: routers, one error handler, the middleware."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from serving.api.context import context_of
from serving.api.crowd import Crowd
from serving.api.middleware import METHODS, RequestMiddleware
from serving.api.openapi import DocumentedApp
from serving.api.problems import problem_response
from serving.api.routes import bearer
from serving.errors import (
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    OperatorError,
    RouteNotFound,
    VisiongateError,
)
from serving.metrics import Metrics
from serving.ports import Clock

logger = logging.getLogger(__name__)


def build_app(
    routers: list[APIRouter],
    *,
    metrics: Metrics,
    crowd: Crowd,
    clock: Clock,
    on_startup: Callable[[], Awaitable[None]],
    in_background: Callable[[], Coroutine[None, None, None]],
    on_shutdown: Callable[[], Awaitable[None]],
) -> FastAPI:
    """`on_startup` precedes the first request, `on_shutdown` follows the last one, or a start that failed.

    `in_background` runs beside them until it is cancelled.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            await on_startup()
            background = asyncio.create_task(in_background())
            background.add_done_callback(_report_failure)
            try:
                yield
            finally:
                background.cancel()
                await asyncio.wait([background])
        finally:
            await on_shutdown()

    app = DocumentedApp(
        title="visiongate",
        summary="Pictures in, boxes out.",
        version=version("visiongate"),
        lifespan=lifespan,
        # A redirect would send the client, key and all, to whatever host its own header names.
        redirect_slashes=False,
    )
    for router in routers:
        app.include_router(router)
    for foreign in (VisiongateError, RequestValidationError, HTTPException):
        app.add_exception_handler(foreign, _answer_error)
    app.add_middleware(RequestMiddleware, metrics=metrics, crowd=crowd, clock=clock)
    return app


def _report_failure(background: asyncio.Task[None]) -> None:
    if not background.cancelled() and (error := background.exception()) is not None:
        logger.critical("the work beside the requests has ended", exc_info=error)


async def _answer_error(request: Request, exc: Exception) -> Response:
    context = context_of(request)
    error = _translate(exc)
    context.failed(error)
    if error.status == InternalError.status:
        logger.error("internal", exc_info=exc, extra={"facts": {"request_id": context.request_id}})
    response = problem_response(
        error,
        request_id=context.request_id,
        path=request.scope["path"],
        token_was_sent=bearer(request) is not None,
    )
    if isinstance(error, MethodNotAllowed):
        response.headers["Allow"] = ", ".join(_allowed_methods(request))
    return response


def _allowed_methods(request: Request) -> list[str]:
    """Of all routes at this path (RFC 9110, section 15.5.6); the router knows only of the first."""

    def is_taken(method: str) -> bool:
        scope = {name: request.scope[name] for name in ("type", "path", "root_path")} | {"method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)

    return [method for method in METHODS if is_taken(method)]


def _translate(exc: Exception) -> VisiongateError:
    match exc:
        case OperatorError():  # about our own set-up: for the log, not for a client
            return InternalError()
        case VisiongateError():
            return exc
        case RequestValidationError():
            return InvalidRequest("The path or query is not what this route takes.")
        case HTTPException(status_code=404):
            return RouteNotFound()
        case HTTPException(status_code=405):
            return MethodNotAllowed()
        case _:
            return InternalError()
