"""`/api/v1/keys` and `/api/v1/users`: issue, list, revoke and rotate keys, and stop a user."""

from __future__ import annotations

from datetime import timedelta

from fastapi import APIRouter, Request
from starlette.responses import Response

from serving.api import control_schemas as schemas
from serving.api import openapi
from serving.api.control_auth import Caller
from serving.api.control_requests import PREFIX, ControlRequests, told_to_the_caller
from serving.api.queries import parsed
from serving.api.routes import DirectRoute, json_response
from serving.domain.key_forms import issued_key_form, key_form
from serving.domain.key_record import KeyRecord, can_be_a_name
from serving.errors import UnknownKey
from serving.ports import Clock, KeyAdministration

_NEVER_STORED = {"Cache-Control": "no-store"}


def key_router(keys: KeyAdministration, requests: ControlRequests, clock: Clock) -> APIRouter:
    router = APIRouter(route_class=DirectRoute, prefix=PREFIX, tags=["keys"])
    _add_issuing(router, keys, requests, clock)
    _add_keys(router, keys, requests, clock)
    _add_users(router, keys, requests)
    return router


def _add_issuing(router: APIRouter, keys: KeyAdministration, requests: ControlRequests, clock: Clock) -> None:
    @router.post(
        "/keys",
        status_code=201,
        summary="Issue a key; its text is in the answer and never again",
        response_model=schemas.Issued,
        **openapi.control(
            *("Issued", 401, 403, 413, 422, 504),
            operator=True,
            status=201,
            takes=schemas.NewKey,
            fields=(openapi.LOCATION, openapi.NEVER_STORED),
        ),
    )
    async def create_key(request: Request) -> Response:
        caller = requests.caller(request)
        caller.require_operator()
        wanted = await requests.body(request, schemas.NewKey)
        with told_to_the_caller():
            fresh = await keys.create(
                actor=caller.actor,
                user=wanted.user,
                tier=wanted.tier,
                models=wanted.models,
                expires_at=wanted.expires_at,
            )
        headers = {**_NEVER_STORED, "Location": f"{PREFIX}/keys/{fresh.record.id}"}
        return json_response(issued_key_form(fresh, clock.now()), status=201, headers=headers)

    @router.post(
        "/keys/{key_id}/rotate",
        summary="A new secret for the same key; earlier ones end with the overlap",
        response_model=schemas.Issued,
        **openapi.control(
            *("Rotated", 401, 404, 413, 422, 504), takes=schemas.Rotation, fields=(openapi.NEVER_STORED,)
        ),
    )
    async def rotate_key(request: Request, key_id: str) -> Response:
        caller = requests.caller(request)
        wanted = await requests.body(request, schemas.Rotation)
        await _visible_key(keys, caller, key_id)
        with told_to_the_caller():
            fresh = await keys.rotate(
                key_id, actor=caller.actor, overlap=timedelta(seconds=wanted.overlap_seconds)
            )
        return json_response(issued_key_form(fresh, clock.now()), headers=_NEVER_STORED)


def _add_keys(router: APIRouter, keys: KeyAdministration, requests: ControlRequests, clock: Clock) -> None:
    @router.get(
        "/keys",
        summary="Keys without their secrets: a user's own, or everybody's",
        response_model=schemas.KeyList,
        **openapi.control("Oldest first", 401, 403, 422, asks=schemas.KeyFilter),
    )
    async def list_keys(request: Request) -> Response:
        caller = requests.caller(request)
        asked = parsed(schemas.KeyFilter, request.query_params)
        records = await keys.list(user=caller.own(asked.user))
        now = clock.now()
        return json_response({"keys": [key_form(record, now) for record in records]})

    @router.get(
        "/keys/{key_id}",
        summary="One key without its secrets",
        response_model=schemas.Key,
        **openapi.control("The key", 401, 404),
    )
    async def show_key(request: Request, key_id: str) -> Response:
        record = await _visible_key(keys, requests.caller(request), key_id)
        return json_response(key_form(record, clock.now()))

    @router.delete(
        "/keys/{key_id}",
        summary="Revoke a key, within a second and for good",
        response_model=schemas.Key,
        **openapi.control("Revoked, now or earlier", 401, 404, 422),
    )
    async def revoke_key(request: Request, key_id: str) -> Response:
        caller = requests.caller(request)
        await _visible_key(keys, caller, key_id)
        with told_to_the_caller():
            record = await keys.revoke(key_id, actor=caller.actor)
        return json_response(key_form(record, clock.now()))

    # RFC 9110, section 9.1: whoever answers GET answers HEAD.
    router.add_api_route("/keys", list_keys, methods=["HEAD"], include_in_schema=False)
    router.add_api_route("/keys/{key_id}", show_key, methods=["HEAD"], include_in_schema=False)


def _add_users(router: APIRouter, keys: KeyAdministration, requests: ControlRequests) -> None:
    async def switch(request: Request, user: str, *, enabled: bool) -> Response:
        caller = requests.caller(request)
        caller.require_operator()
        with told_to_the_caller():
            concerned = await keys.set_user_enabled(user, enabled=enabled, actor=caller.actor)
        return json_response({"user": user, "enabled": enabled, "keys": concerned})

    docs = {"response_model": schemas.SwitchedUser, **openapi.control("Done", 401, 403, 422, operator=True)}

    # A user's name may hold anything printable, a slash too.
    @router.post("/users/{user:path}/disable", summary="Stop all of a user's keys, within a second", **docs)
    async def disable_user(request: Request, user: str) -> Response:
        return await switch(request, user, enabled=False)

    @router.post("/users/{user:path}/enable", summary="Let a user's keys work again", **docs)
    async def enable_user(request: Request, user: str) -> Response:
        return await switch(request, user, enabled=True)


async def _visible_key(keys: KeyAdministration, caller: Caller, key_id: str) -> KeyRecord:
    """Raises UnknownKey also for somebody else's: that it exists is not for a user to know."""
    record = await keys.get(key_id) if can_be_a_name(key_id) else None
    if record is None or caller.user not in (None, record.user):
        raise UnknownKey(key_id)
    return record
