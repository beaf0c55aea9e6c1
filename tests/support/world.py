"""The gateway in process, on in-memory adapters: everything but sockets, Triton and SQL."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import cv2
import httpx
import jwt
import numpy as np
from fastapi import FastAPI
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from serving.adapters.memory.admission import InMemoryAdmission
from serving.adapters.memory.backend import InMemoryBackend, Model
from serving.adapters.memory.catalog import InMemoryCatalog
from serving.adapters.memory.keys import InMemoryKeyStore
from serving.adapters.memory.meter import InMemoryMeter
from serving.adapters.sql.database import Database
from serving.adapters.sql.ledger import SqlLedger
from serving.api.app import build_app
from serving.api.body import BodyLimits
from serving.api.control_auth import ControlAuth
from serving.api.control_plane import ControlPlane, control_plane_router
from serving.api.crowd import Crowd
from serving.api.data_plane import DataPlane, data_plane_router
from serving.api.probes import Readiness
from serving.budget import Budget
from serving.clock import SystemClock
from serving.detector import Detector, DetectorLimits
from serving.domain.api_key import KeyHasher
from serving.domain.contract import ModelContract
from serving.domain.key_record import issue_key
from serving.domain.tenant import Tier
from serving.lanes import Lanes
from serving.metrics import Metrics
from serving.pipeline import Gateway
from serving.ports import CatalogModel, Clock, Ledger
from serving.threads import PriorityThreads
from tests.support.contracts import contract

SECRET = SecretStr("a secret that only tests use, long enough")
ADMIN_TOKEN = SecretStr("an admin token that only tests use")
AUDIENCE = "visiongate"
USER_TOKEN_SECRET = SecretStr("a secret of users' tokens that only tests use")
INPUT_SIDE = 64
MAX_BODY_BYTES = 200_000
MAX_PIXELS = 1_000_000
MAX_REQUESTS = 8


def make_contract(name: str = "shapes") -> ModelContract:
    """The contract that `three_anchors` keeps."""
    return contract(name, side=INPUT_SIDE, anchors=3, classes=["cat", "dog"])


SHAPES_AND_OTHER = tuple(make_contract(name) for name in ("shapes", "other"))


def three_anchors(batch_nhwc: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A cat whose confidence is the picture's brightness, a dog that is always there, and nothing."""
    rows = np.zeros((len(batch_nhwc), 6, 3), np.float32)
    rows[:, :4, 0] = (20, 24, 16, 8)
    rows[:, :4, 1] = (44, 40, 10, 10)
    rows[:, 4, 0] = batch_nhwc.reshape(len(batch_nhwc), -1).max(axis=1) / 255
    rows[:, 5, 1] = 0.5
    return rows


@dataclass(frozen=True)
class World:
    """The app and what stands behind it, for tests to look into. There is one of `body_threads`."""

    app: FastAPI
    client: httpx.AsyncClient
    keys: InMemoryKeyStore
    admission: InMemoryAdmission
    meter: InMemoryMeter
    catalog: InMemoryCatalog
    lanes: Lanes
    backend: InMemoryBackend
    metrics: Metrics
    held_bytes: Budget
    body_threads: PriorityThreads
    tiers: dict[str, Tier]
    issue: Callable[..., str]
    degraded: list[str]

    def bearer(self, **terms: Any) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.issue(**terms)}"}


def as_operator() -> dict[str, str]:
    return {"Authorization": f"Bearer {ADMIN_TOKEN.get_secret_value()}"}


def as_user(name: str) -> dict[str, str]:
    claims = {"sub": name, "aud": AUDIENCE, "exp": int(time.time()) + 600}
    return {"Authorization": f"Bearer {jwt.encode(claims, USER_TOKEN_SECRET.get_secret_value(), 'HS256')}"}


@asynccontextmanager
async def running_world(
    tier: Tier,
    *others: Tier,
    contracts: Sequence[ModelContract] = SHAPES_AND_OTHER,
    model: Model = three_anchors,
    request_timeout_seconds: float = 10,
    max_queued_pictures: int = 8,
    make_admission: Callable[[Clock], InMemoryAdmission] = InMemoryAdmission,
    make_keys: type[InMemoryKeyStore] = InMemoryKeyStore,
    ledger: Ledger | None = None,
    clock: Clock | None = None,
) -> AsyncIterator[World]:
    """tier: of the keys that are issued without naming one of the others.

    model: answers for all of the contracts. ledger: None is one whose database nobody can open.
    """
    tiers = {each.name: each for each in (tier, *others)}
    clock = clock or SystemClock()
    metrics = Metrics(CollectorRegistry())
    keys = make_keys(server_secret=SECRET, tiers=tiers, clock=clock)
    admission = make_admission(clock)
    meter = InMemoryMeter(admission)
    backend = InMemoryBackend(model, clock)
    held_bytes = Budget(2 * MAX_BODY_BYTES, left_to_the_urgent=2 * MAX_BODY_BYTES // 8)
    with ThreadPoolExecutor(2) as executor, ThreadPoolExecutor(1) as body_executor:
        body_threads = PriorityThreads(body_executor, 1)
        threads = PriorityThreads(executor, 2)

        def make_detector(model: CatalogModel) -> Detector:
            return Detector(
                model.contract,
                backend=backend,
                limits=DetectorLimits(
                    max_batch_size=model.max_batch_size,
                    max_batches_in_flight=1,
                    max_queued_pictures=max_queued_pictures,
                    max_picture_pixels=MAX_PIXELS,
                ),
                decoded_pixels=Budget(MAX_PIXELS),
                threads=threads,
                clock=clock,
                metrics=metrics,
            )

        catalog = InMemoryCatalog(contracts)
        lanes = Lanes(catalog, backend, make_detector, clock, request_timeout_seconds=request_timeout_seconds)
        await lanes.refresh()
        await lanes.settle()
        gateway = Gateway(
            keys=keys,
            admission=admission,
            meter=meter,
            lanes=lanes,
            clock=clock,
        )

        degraded: list[str] = []

        async def readiness() -> Readiness:
            return Readiness(await lanes.ready(), tuple(degraded))

        ledger = ledger or SqlLedger(Database("sqlite:////dev/null/ledger.db"), {})
        crowd = Crowd(MAX_REQUESTS, metrics)
        plane = DataPlane(
            gateway=gateway,
            ledger=ledger,
            clock=clock,
            crowd=crowd,
            body_limits=BodyLimits(MAX_BODY_BYTES, timeout_seconds=5),
            held_bytes=held_bytes,
            body_threads=body_threads,
            request_timeout_seconds=request_timeout_seconds,
            readiness=readiness,
        )
        control = ControlPlane(
            keys=keys,
            ledger=ledger,
            auth=ControlAuth(
                admin_token=ADMIN_TOKEN, user_jwt_key=USER_TOKEN_SECRET, user_jwt_audience=AUDIENCE
            ),
            clock=clock,
            held_bytes=held_bytes,
            body_timeout_seconds=5,
        )

        async def close() -> None:
            await lanes.close()

        app = build_app(
            [data_plane_router(plane), control_plane_router(control)],
            metrics=metrics,
            crowd=crowd,
            clock=clock,
            on_startup=lanes.start,
            in_background=lanes.run,
            on_shutdown=close,
        )

        def issue(
            *,
            user: str = "u",
            revoked: bool = False,
            expired: bool = False,
            models: list[str] | None = None,
            tier: str = tier.name,
        ) -> str:
            issued = issue_key(
                user=user,
                tier=tier,
                models=models,
                expires_at=None,
                tiers=tiers,
                hasher=KeyHasher(SECRET),
                now=clock.now(),
            )
            now = clock.now()
            keys.add(
                replace(
                    issued.record,
                    expires_at=now if expired else None,
                    revoked_at=now if revoked else None,
                )
            )
            return issued.api_key.reveal()

        transport = httpx.ASGITransport(app, raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            yield World(
                *(app, client, keys, admission, meter, catalog, lanes),
                *(backend, metrics, held_bytes, body_threads, tiers, issue, degraded),
            )
        await close()


def encode(picture: NDArray[np.uint8], suffix: str = ".jpg") -> bytes:
    return cv2.imencode(suffix, picture)[1].tobytes()
