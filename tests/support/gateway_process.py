"""One gateway process without Ray, for tests and benchmarks: `python -m tests.support.gateway_process PORT`.

It is what `serving.wiring.build` makes, settings from the environment; unless `VISIONGATE_TEST_ACCOUNTS` asks
for other accounts than the real ones:

- `none`: ones that admit everybody, record nothing and cost nothing, to tell what the real ones cost;
- `late`: usage is settled after the answer has left, which is the fault that the chaos suite has to find.
"""

from __future__ import annotations

import asyncio
import os
import sys
from datetime import UTC, datetime
from typing import Any

import uvicorn
from fastapi import FastAPI

from serving import wiring
from serving.domain.idempotency import IdempotencyKey
from serving.domain.inference import RenderedAnswer
from serving.domain.limits import LimitState
from serving.domain.tenant import Principal
from serving.domain.usage import UsageEvent
from serving.pipeline import Gateway
from serving.ports import Reservation, UsageMeter
from serving.settings import load_settings
from tests.support.gateways import ACCOUNTS

LATE_BY_SECONDS = 0.05
GRACEFUL_SECONDS = 5


class LateMeter:
    """Says that it has settled, and does so a little later. A process that is killed in between has lied."""

    def __init__(self, meter: UsageMeter) -> None:
        self._meter = meter
        self._promises: set[asyncio.Task[None]] = set()

    async def settle(self, event: UsageEvent, reservation: Reservation, answer: RenderedAnswer) -> None:
        promise = asyncio.create_task(self._later(event, reservation, answer))
        self._promises.add(promise)
        promise.add_done_callback(self._promises.discard)

    async def _later(self, event: UsageEvent, reservation: Reservation, answer: RenderedAnswer) -> None:
        await asyncio.sleep(LATE_BY_SECONDS)
        await self._meter.settle(event, reservation, answer)


class LateGateway(Gateway):
    def __init__(self, *, meter: UsageMeter, **others: Any) -> None:
        super().__init__(meter=LateMeter(meter), **others)


class NoAccounts:
    """Both ports."""

    _limits = LimitState(
        tokens=1, next_token_seconds=1.0, quota=None, month_ends_seconds=1.0, concurrent=None
    )
    _admitted_at = datetime(2026, 11, 21, tzinfo=UTC)

    async def admit(
        self,
        principal: Principal,
        *,
        request_id: str,
        pictures: int,
        lease_seconds: float,
        idempotency: IdempotencyKey | None = None,
    ) -> Reservation:
        return Reservation(
            request_id, principal.key_id, pictures, self._admitted_at, self._limits, idempotency
        )

    async def give_back(self, reservation: Reservation) -> None:
        pass

    async def limits(self, principal: Principal) -> LimitState:
        return self._limits

    async def settle(self, event: UsageEvent, reservation: Reservation, answer: RenderedAnswer) -> None:
        pass


class GatewayWithoutAccounts(Gateway):
    def __init__(self, **others: Any) -> None:
        super().__init__(**others | {"admission": NoAccounts(), "meter": NoAccounts()})


GATEWAYS = {"real": Gateway, "late": LateGateway, "none": GatewayWithoutAccounts}


def make_app() -> FastAPI:
    vars(wiring)["Gateway"] = GATEWAYS[os.environ.get(ACCOUNTS, "real")]
    return wiring.build(load_settings())


def main() -> None:
    (port,) = sys.argv[1:]
    uvicorn.run(
        "tests.support.gateway_process:make_app",  # called in the loop that will run it
        factory=True,
        host="127.0.0.1",
        port=int(port),
        log_level="warning",
        access_log=False,
        lifespan="on",
        timeout_graceful_shutdown=GRACEFUL_SECONDS,
    )


if __name__ == "__main__":
    main()
