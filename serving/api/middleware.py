"""Around every request: a bound on how many at a time, an id, timings, a log line, and no stack trace."""

from __future__ import annotations

import asyncio
import logging

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.api.context import RequestContext, attach
from serving.api.crowd import Crowd
from serving.api.problems import problem_response
from serving.api.rate_limit_fields import limit_field, policy_field, wait_seconds
from serving.domain.tenant import Tier
from serving.errors import InternalError, VisiongateError
from serving.metrics import Metrics
from serving.ports import Clock

logger = logging.getLogger(__name__)

CLIENT_LEFT = 499  # nginx's number for a client that closed the connection; never sent
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
PROBES = frozenset({"/healthz", "/readyz"})


class RequestMiddleware:
    def __init__(self, app: ASGIApp, *, metrics: Metrics, crowd: Crowd, clock: Clock) -> None:
        self._app = app
        self._metrics = metrics
        self._crowd = crowd
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        context = attach(scope)
        answer = _Answer(context, send, self._clock)
        try:
            with self._crowd.joined():
                await self._answer(scope, receive, answer)
        finally:
            self._record(scope, context, answer.status)

    async def _answer(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        try:
            if scope["path"] not in PROBES:  # which get through: a busy replica is not a dead one
                self._crowd.refuse_if_full()
            await self._app(scope, receive, answer.send)
        except (ClientDisconnect, asyncio.CancelledError) as exc:
            answer.context.code = "client_left"
            if isinstance(exc, asyncio.CancelledError):
                raise
        except Exception as exc:
            error = exc if isinstance(exc, VisiongateError) else InternalError()
            if error is not exc:
                logger.exception("unhandled", extra={"facts": {"request_id": answer.context.request_id}})
            answer.context.failed(error)
            if answer.status != CLIENT_LEFT:
                raise  # half an answer is out: closing the connection is all that is left
            response = problem_response(error, request_id=answer.context.request_id, path=scope["path"])
            await response(scope, receive, answer.send)

    def _record(self, scope: Scope, context: RequestContext, status: int) -> None:
        route = _route_template(scope)
        self._metrics.requests.labels(_method(scope), route, str(status), context.code).inc()
        self._metrics.request_seconds.labels(route).observe(context.elapsed_seconds)
        for stage, seconds in context.stage_seconds.items():
            self._metrics.stage_seconds.labels(stage).observe(seconds)
        logger.log(
            logging.DEBUG if route in PROBES else logging.INFO,
            "request",
            extra={
                "facts": {
                    "request_id": context.request_id,
                    "method": _method(scope),
                    "route": route,
                    "status": status,
                    "code": context.code,
                    "seconds": round(context.elapsed_seconds, 6),
                    "stage_seconds": {k: round(v, 6) for k, v in context.stage_seconds.items()},
                    **context.facts,
                }
            },
        )


def _route_template(scope: Scope) -> str:
    """The path as the router knows it: a closed set, whatever paths scanners try."""
    return str(getattr(scope.get("route"), "path", "unmatched"))


class _Answer:
    """Notes the status and adds the headers that every answer carries."""

    def __init__(self, context: RequestContext, send: Send, clock: Clock) -> None:
        self.context = context
        self.status = CLIENT_LEFT
        self._send = send
        self._clock = clock

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = self.context.request_id
            if self.context.principal is not None:
                await self._add_rate_limits(headers, self.context.principal.tier)
            headers["Server-Timing"] = self.context.server_timing()
            self.status = message["status"]
        await self._send(message)

    async def _add_rate_limits(self, headers: MutableHeaders, tier: Tier) -> None:
        headers["RateLimit-Policy"] = policy_field(tier, self._clock.now())
        state = await self.context.known_limits()
        if state is None:
            return
        headers["RateLimit"] = limit_field(state)
        if violated := self.context.violated_policies:
            at_least = max(int(headers["Retry-After"]), wait_seconds(state, violated))
            headers["Retry-After"] = str(at_least)


def _method(scope: Scope) -> str:
    method = scope["method"]
    return method if method in METHODS else "other"
