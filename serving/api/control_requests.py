"""What every route of the control plane does first: find out who calls, and read what they want."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from serving.api.body import BodyLimits, held_body
from serving.api.context import context_of
from serving.api.control_auth import Caller, ControlAuth
from serving.api.routes import bearer
from serving.api.validation import invalid
from serving.budget import Budget
from serving.errors import InvalidRequest, OperatorError

PREFIX = "/api/v1"
"""In each route's own path, for that is the label of its metrics."""
MAX_BODY_BYTES = 256 * 1024

_Body = TypeVar("_Body", bound=BaseModel)


class ControlRequests:
    def __init__(self, auth: ControlAuth, held_bytes: Budget, body_timeout_seconds: float) -> None:
        self._auth = auth
        self._held_bytes = held_bytes
        self._limits = BodyLimits(MAX_BODY_BYTES, body_timeout_seconds)

    def caller(self, request: Request) -> Caller:
        """Raises NoControlToken."""
        context = context_of(request)
        with context.stage("auth"):
            caller = self._auth.caller(bearer(request))
        context.facts.update(actor=caller.actor)
        return caller

    async def body(self, request: Request, model: type[_Body]) -> _Body:
        """Raises InvalidRequest, and what `held_body` raises."""
        async with held_body(request, self._limits, self._held_bytes) as body:
            try:
                return model.model_validate_json(body)
            except ValidationError as exc:
                raise invalid(exc) from exc


@contextmanager
def told_to_the_caller() -> Iterator[None]:
    """What an operator would read on a terminal is for whoever asked here: what no key can have, say."""
    try:
        yield
    except OperatorError as exc:
        raise InvalidRequest(exc.detail) from exc
