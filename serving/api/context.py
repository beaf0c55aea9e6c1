"""What is known about a request while it is under way; the middleware makes it, handlers add to it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from starlette.requests import HTTPConnection
from starlette.types import Scope

from serving.domain.limits import LimitState
from serving.domain.tenant import Principal
from serving.errors import AccountsUnavailable, LimitReached, VisiongateError

_KEY = "visiongate.request"


@dataclass(slots=True)
class RequestContext:
    """`request_id` is made here and never taken from the client: it is the usage event's identity.

    stage_seconds: by stage name, in the order they ran. facts: for the log line; no key, no picture.
    principal: once the API key has proven valid. limits: once admission has decided.
    violated_policies: why it was refused, by the names in `RateLimit-Policy`.
    """

    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    started: float = field(default_factory=time.monotonic)
    stage_seconds: dict[str, float] = field(default_factory=dict)
    facts: dict[str, str | int | None] = field(default_factory=dict)
    code: str = "ok"
    principal: Principal | None = None
    limits: LimitState | None = None
    violated_policies: tuple[str, ...] = ()
    _ask_limits: Callable[[], Awaitable[LimitState]] | None = None

    @property
    def elapsed_seconds(self) -> float:
        return time.monotonic() - self.started

    def authenticated(self, principal: Principal, ask_limits: Callable[[], Awaitable[LimitState]]) -> None:
        """ask_limits: what is left of the key's limits, should the request not be admitted."""
        self.principal = principal
        self._ask_limits = ask_limits
        self.facts.update(key_id=principal.key_id, user=principal.user, tier=principal.tier.name)

    def failed(self, error: VisiongateError) -> None:
        self.code = error.code
        self.violated_policies = ()
        if isinstance(error, LimitReached):
            self.violated_policies, self.limits = error.violated_policies, error.limits
        if isinstance(error, AccountsUnavailable):
            self._ask_limits = None  # nobody would answer, and the client has waited once already

    async def known_limits(self) -> LimitState | None:
        """As admission saw them, else asked for, once; None where that cannot be told."""
        ask, self._ask_limits = self._ask_limits, None
        if self.limits is None and ask is not None:
            try:
                self.limits = await ask()
            except VisiongateError:
                return None
        return self.limits

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
