"""`/healthz` and `/readyz`: what whoever starts, balances and watches gateways asks, without a key."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from fastapi import APIRouter, Request
from starlette.responses import Response

from serving.api import schemas
from serving.api.routes import DirectRoute, json_response


@dataclass(frozen=True, slots=True)
class Readiness:
    """checks: what this gateway cannot serve without. degraded: what it does without meanwhile, by name.

    Whatever is degraded leaves it ready: taken out of rotation it would serve nobody, and so would the rest.
    """

    checks: Mapping[str, bool]
    degraded: tuple[str, ...] = ()

    @property
    def ready(self) -> bool:
        return all(self.checks.values())


def probe_router(readiness: Callable[[], Awaitable[Readiness]]) -> APIRouter:
    router = APIRouter(route_class=DirectRoute, tags=["probes"])

    @router.get("/healthz", summary="The process is up", response_model=schemas.Health)
    async def healthz(_: Request) -> Response:
        return json_response({"status": "ok"})

    @router.get(
        "/readyz",
        summary="It can serve",
        response_model=schemas.Readiness,
        responses={503: {"description": "It cannot, and says why", "model": schemas.Readiness}},
    )
    async def readyz(_: Request) -> Response:
        now = await readiness()
        body = {"ready": now.ready, "checks": dict(now.checks), "degraded": list(now.degraded)}
        return json_response(body, status=200 if now.ready else 503)

    # RFC 9110, section 9.1: whoever answers GET answers HEAD.
    for path, get in (("/healthz", healthz), ("/readyz", readyz)):
        router.add_api_route(path, get, methods=["HEAD"], include_in_schema=False)
    return router
