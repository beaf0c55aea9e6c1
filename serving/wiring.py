"""The composition root: settings in, adapters built, gateway and app out. Nothing else builds anything."""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import logging
import math
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress

import cv2
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from serving.accounting import own_accounting, shared_accounting
from serving.adapters.background import do_every, keep_running
from serving.adapters.catalog import FolderCatalog
from serving.adapters.live_tiers import LiveTiers
from serving.adapters.prometheus import serve_metrics
from serving.adapters.shared_memory import SharedSlots, allocate
from serving.adapters.sql.database import Database
from serving.adapters.sql.key_registry import KeyRegistry
from serving.adapters.sql.key_store import SqlKeyStore
from serving.adapters.sql.ledger import SqlLedger
from serving.adapters.triton import MAX_MESSAGE_BYTES, TritonBackend
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
from serving.errors import BackendUnavailable, OperatorError
from serving.lanes import Lanes
from serving.logs import log_to
from serving.metrics import Metrics
from serving.pipeline import Gateway
from serving.ports import CatalogModel, CatalogScan
from serving.settings import Settings
from serving.threads import PriorityThreads

logger = logging.getLogger(__name__)

NOTE_PRICES_SECONDS = 60.0

MESSAGE_HEAD_BYTES = 64 << 10
"""More than there is in a message besides its tensor."""


def build(settings: Settings, *, alone: bool = False) -> FastAPI:
    """One gateway process, for any ASGI server. Call it in the process that will serve.

    alone: it is the only one and bills nobody, so it keeps accounts in its memory and needs no Redis.
    """
    log_to(settings.run_directory / "logs" / f"gateway-{os.getpid()}.jsonl", level=settings.log_level)
    cv2.setNumThreads(1)  # pictures run side by side; a second level of threads would only get in the way
    clock = SystemClock()
    metrics = Metrics(CollectorRegistry())
    database = Database(settings.database_url)
    catalog = FolderCatalog(settings.model_repository)
    backend = TritonBackend(
        settings.triton_grpc_address, clock=clock, shared_memory=_shared_slots(settings, catalog.scan())
    )
    executor = ThreadPoolExecutor(settings.vision_threads, thread_name_prefix="vision")
    threads = PriorityThreads(executor, settings.vision_threads)
    # Of their own: bodies of requests that may never be admitted must not hold up pictures of those that are.
    body_executor = ThreadPoolExecutor(settings.vision_threads, thread_name_prefix="body")
    decoded_pixels = Budget(settings.max_decoded_pixels, left_to_the_urgent=settings.max_decoded_pixels // 8)

    def make_detector(model: CatalogModel) -> Detector:
        return Detector(
            model.contract,
            backend=backend,
            limits=_detector_limits(settings, model),
            decoded_pixels=decoded_pixels,
            threads=threads,
            clock=clock,
            metrics=metrics,
        )

    lanes = Lanes(
        catalog,
        backend,
        make_detector,
        clock,
        request_timeout_seconds=settings.request_timeout_seconds,
    )
    tiers = LiveTiers(settings.tiers_file, metrics=metrics)
    ledger = SqlLedger(database, tiers)
    keys = SqlKeyStore(database, server_secret=settings.key_hash_secret, tiers=tiers, clock=clock)
    accounting = (
        own_accounting(listener=keys, clock=clock)
        if alone
        else shared_accounting(settings, ledger=ledger, listener=keys, clock=clock, metrics=metrics)
    )
    gateway = Gateway(
        keys=keys,
        admission=accounting.admission,
        meter=accounting.meter,
        lanes=lanes,
        clock=clock,
    )
    stop_metrics = serve_metrics(metrics.registry, first_port=settings.metrics_port)

    async def readiness() -> Readiness:
        keys_answer, models = await asyncio.gather(database.answers(), lanes.ready())
        # One model that does not load must not take the others out of rotation with it.
        checks = {"keys": keys_answer, "models": any(models.values())}
        return Readiness(checks, degraded=("accounts",) if accounting.is_degraded() else ())

    async def note_prices() -> None:
        await ledger.note_prices(clock.now())

    async def start() -> None:
        # Now, and not under the first request. One that is down is prepared at its first use.
        with suppress(BackendUnavailable):
            await database.prepare()
        await accounting.start()
        await lanes.start()

    async def run() -> None:
        runs = {"the models": lanes.run, "the keys": keys.run, "the tier table": tiers.run, **accounting.runs}
        runs["the prices"] = functools.partial(do_every, NOTE_PRICES_SECONDS, note_prices)
        await asyncio.gather(*(keep_running(what, each) for what, each in runs.items()))

    async def close() -> None:
        async with AsyncExitStack() as last_first:  # each of them, whatever becomes of the others
            last_first.callback(stop_metrics)
            last_first.callback(executor.shutdown)
            last_first.callback(body_executor.shutdown)
            for each in (database, keys, accounting, backend, lanes):
                last_first.push_async_callback(each.close)

    crowd = Crowd(settings.max_requests_in_flight, metrics)
    held_bytes = Budget(settings.max_bodies_bytes, left_to_the_urgent=settings.max_bodies_bytes // 8)
    metrics.held_body_bytes.set_function(lambda: held_bytes.held)
    plane = DataPlane(
        gateway=gateway,
        ledger=ledger,
        clock=clock,
        crowd=crowd,
        body_limits=BodyLimits(settings.max_body_bytes, settings.body_timeout_seconds),
        held_bytes=held_bytes,
        body_threads=PriorityThreads(body_executor, settings.vision_threads),
        request_timeout_seconds=settings.request_timeout_seconds,
        readiness=readiness,
    )
    control = ControlPlane(
        keys=KeyRegistry(
            database,
            server_secret=settings.key_hash_secret,
            tiers=tiers,
            clock=clock,
            publisher=accounting.key_changes,
        ),
        ledger=ledger,
        auth=ControlAuth(
            admin_token=settings.admin_token,
            user_jwt_key=settings.user_jwt_key,
            user_jwt_audience=settings.user_jwt_audience,
        ),
        clock=clock,
        held_bytes=held_bytes,
        body_timeout_seconds=settings.body_timeout_seconds,
    )
    return build_app(
        [data_plane_router(plane), control_plane_router(control)],
        metrics=metrics,
        crowd=crowd,
        clock=clock,
        on_startup=start,
        in_background=run,
        on_shutdown=close,
    )


def _shared_slots(settings: Settings, scan: CatalogScan) -> SharedSlots | None:
    """As large as the models that are there at the start need; a larger one's pictures go in messages."""
    sizes = [model.contract.input_size for model in scan.models.values()]
    if not (settings.shared_memory and _is_loopback(settings.triton_grpc_address)):
        return None
    if not sizes:
        logger.warning("no model at the start: until the next one, pictures go to Triton in messages")
        return None
    picture_bytes = max(size.height * size.width * 3 for size in sizes)
    return allocate(slots=settings.shared_memory_slots, slot_bytes=picture_bytes * settings.max_batch_size)


def _is_loopback(address: str) -> bool:
    """Whether `host:port` is surely this machine."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _detector_limits(settings: Settings, model: CatalogModel) -> DetectorLimits:
    """Raises OperatorError for a model of which not even one picture fits into a message, or its answer."""
    size = model.contract.input_size
    taken_bytes = size.height * size.width * 3  # in a message where no slot is free, or large enough
    answered_bytes = 4 * math.prod(model.contract.output.shape[1:])
    most_bytes = MAX_MESSAGE_BYTES - MESSAGE_HEAD_BYTES
    in_one_message = most_bytes // max(taken_bytes, answered_bytes)
    if not in_one_message:
        raise OperatorError(
            f"one picture takes {taken_bytes} bytes, its answer {answered_bytes}, a message {most_bytes}"
        )
    return DetectorLimits(
        max_batch_size=min(settings.max_batch_size, model.max_batch_size, in_one_message),
        max_batches_in_flight=settings.max_batches_in_flight,
        max_queued_pictures=settings.max_queued_pictures,
        max_picture_pixels=settings.max_picture_pixels,
    )
