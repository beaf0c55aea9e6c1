"""What is known about a request while it is under way; the middleware makes it, handlers add to it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from starlette.requests import HTTPConnection
from starlette.types import Scope

from serving.domain.limits import LimitState

_KEY = "visiongate.request"


@dataclass(slots=True)
class RequestContext:
    """`request_id` is made here and never taken from the client: it is the usage event's identity.

    stage_seconds: by stage name, in the order they ran. facts: for the log line; no key, no picture.
    """

    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    started: float = field(default_factory=time.monotonic)
    stage_seconds: dict[str, float] = field(default_factory=dict)
    facts: dict[str, str | int | None] = field(default_factory=dict)
    code: str = "ok"
    limits: LimitState | None = None

    @property
    def elapsed_seconds(self) -> float:
        return time.monotonic() - self.started

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        begin = time.monotonic()
        try:
            yield
        finally:
            self.stage_seconds[name] = time.monotonic() - begin

    def server_timing(self) -> str:
        """https://www.w3.org/TR/server-timing/: durations in milliseconds."""
        stages = {**self.stage_seconds, "total": self.elapsed_seconds}
        return ", ".join(f"{name};dur={seconds * 1000:.3f}" for name, seconds in stages.items())


def attach(scope: Scope) -> RequestContext:
    context = RequestContext()
    scope[_KEY] = context
    return context


def context_of(request: HTTPConnection) -> RequestContext:
    context: RequestContext = request.scope[_KEY]
    return context
