"""A whole stack on one machine: Redis, Triton, Ray and the gateway, started in order, stopped in reverse."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from serving import deployment
from serving.adapters.catalog import FolderCatalog
from serving.adapters.key_changes import LocalKeyChanges
from serving.adapters.sql.database import Database
from serving.adapters.sql.key_registry import KeyRegistry
from serving.adapters.tiers import load_tiers
from serving.clock import SystemClock
from serving.errors import OperatorError
from serving.process import ManagedProcess
from serving.redis_server import RedisServer
from serving.settings import Settings
from serving.triton.launcher import ModelsNotLoaded, TritonPorts, TritonServer

KEY_OWNER = "visiongate-up"
ACTOR = "stack"
METER_STOP_TIMEOUT_SECONDS = 10.0
READY_TIMEOUT_SECONDS = 60.0
READY_INTERVAL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to start, with what a person should read while it starts."""

    title: str
    start: Callable[[], None]


class LocalStack:
    """Use as a context manager: whatever was started is stopped, in reverse, however the block ends.

    not_loaded: once started, why Triton could not load a model, by its name.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._started = ExitStack()
        self._scan = FolderCatalog(settings.model_repository).verified()
        self._triton: TritonServer | None = None
        self.not_loaded: Mapping[str, str] = {}
        self.url = f"http://{_reachable(settings.host)}:{settings.port}"
        self.triton_url = f"grpc://{settings.triton_url}"
        self.redis_url = settings.redis_address.get_secret_value()
        self.metrics_url = f"http://127.0.0.1:{settings.metrics_port}/metrics"
        self.dashboard_url = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._started.close()

    def steps(self) -> Iterator[Step]:
        """Start them one after the other. Each raises OperatorError with the reason when it cannot start."""
        self._refuse_taken_ports()
        if not self._scan.models:
            refused = (f"\n{name}: {why}" for name, why in self._scan.refused.items())
            raise OperatorError(
                f"{self._settings.model_repository} holds no model that can be served.{''.join(refused)}"
            )
        if self._settings.redis_url is None:
            yield Step("Redis", self._start_redis)
        if self._settings.triton_url is None:
            yield Step("Triton", self._start_triton)
        yield Step("Ledger", self._start_meter)
        yield Step("Ray", self._start_ray)
        yield Step("Gateway behind its ingress", lambda: deployment.serve_gateway(self._settings))
        if (triton := self._triton) is not None:
            yield Step(f"Models: {', '.join(self._scan.models)}", lambda: self._await_models(triton))

    def sample_picture(self) -> tuple[str, Path] | None:
        """The first model that ships a picture to try it with, and that picture."""
        for name in sorted(self._scan.models.keys() - self.not_loaded.keys()):
            picture = self._settings.model_repository / name / "sample.jpg"
            if picture.exists():
                return name, picture
        return None

    def issue_key(self) -> str:
        """A key of the top tier, allowed on every model; each run gives it a new secret."""
        return asyncio.run(self._issue_key())

    def _start_redis(self) -> None:
        server = RedisServer(port=self._settings.redis_port, directory=self._settings.run_directory / "redis")
        self._started.callback(server.stop)
        server.start()

    def _start_triton(self) -> None:
        settings = self._settings
        self._triton = TritonServer(
            settings.model_repository,
            list(self._scan.models),
            TritonPorts(settings.triton_http_port, settings.triton_grpc_port, settings.triton_metrics_port),
            executable=settings.triton_executable,
        )
        self._started.callback(self._triton.stop)
        self._triton.start()
        self.triton_url = self._triton.http_url

    def _start_meter(self) -> None:
        """Below Ray, so that it is still there when the last gateway has settled."""
        os.environ.update(_child_environment(self._settings))
        meter = ManagedProcess(
            "visiongate meter",
            [sys.executable, "-m", "serving", "meter"],
            logger=logging.getLogger("serving.meter"),
            stop_timeout_seconds=METER_STOP_TIMEOUT_SECONDS,
        )
        self._started.callback(meter.stop)
        meter.start()

    def _await_models(self, triton: TritonServer) -> None:
        try:
            triton.wait_ready(self._settings.triton_start_timeout_seconds)
        except ModelsNotLoaded as error:
            if error.reasons.keys() >= self._scan.models.keys():
                raise
            self.not_loaded = error.reasons

    def _start_ray(self) -> None:
        scratch = _scratch_folder()
        self._started.callback(shutil.rmtree, scratch, ignore_errors=True)
        os.environ.update(deployment.ray_environment(self._settings, scratch))
        self._started.callback(deployment.stop_ray)
        self.dashboard_url = deployment.start_ray(self._settings, scratch)

    async def _issue_key(self) -> str:
        tiers = load_tiers(self._settings.tiers_file)
        database = Database(self._settings.database_url)
        try:
            registry = KeyRegistry(
                database,
                server_secret=self._settings.key_hash_secret,
                tiers=tiers,
                clock=SystemClock(),
                publisher=LocalKeyChanges(),  # a gateway elsewhere finds it in the database, within a second
            )
            top = max(tiers.values(), key=lambda tier: tier.rate_limit_per_minute)
            records = await registry.list(user=KEY_OWNER)
            usable = (record for record in records if record.tier == top.name and not record.revoked_at)
            if (record := next(usable, None)) is not None:
                issued = await registry.rotate(record.id, actor=ACTOR, overlap=timedelta())
            else:
                issued = await registry.create(actor=ACTOR, user=KEY_OWNER, tier=top.name)
        finally:
            await database.close()
        return issued.api_key.reveal()

    def _refuse_taken_ports(self) -> None:
        settings = self._settings
        names = ["port", "metrics_port", "meter_metrics_port", "dashboard_port"]
        if settings.haproxy:
            names += ["haproxy_metrics_port", "haproxy_stats_port", "fallback_proxy_port"]
        if settings.triton_url is None:
            names += ["triton_http_port", "triton_grpc_port", "triton_metrics_port"]
        if settings.redis_url is None:
            names += ["redis_port"]
        for name in names:
            host = settings.host if name == "port" else "127.0.0.1"
            if not _is_free(host, getattr(settings, name)):
                raise OperatorError(
                    f"Port {getattr(settings, name)} is taken; choose another with VISIONGATE_{name.upper()}."
                )


def _scratch_folder() -> Path:
    """For Ray's and HAProxy's sockets. HAProxy allows a path of 97 bytes, of which Ray takes 70."""
    for left in Path("/tmp").glob("vg-*-*"):  # noqa: S108 - the one place that is short enough
        if not Path("/proc", left.name.split("-")[1]).exists():
            shutil.rmtree(left, ignore_errors=True)  # its stack was killed
    return Path(tempfile.mkdtemp(prefix=f"vg-{os.getpid()}-", dir="/tmp"))


def wait_until(is_ready: Callable[[], bool], *, what: str) -> None:
    give_up = time.monotonic() + READY_TIMEOUT_SECONDS
    while not is_ready():
        if time.monotonic() > give_up:
            raise OperatorError(f"{what} did not become ready within {READY_TIMEOUT_SECONDS:.0f} s.")
        time.sleep(READY_INTERVAL_SECONDS)


def _child_environment(settings: Settings) -> Mapping[str, str]:
    """What our processes must read as we read it, wherever they are started."""
    paths = {
        "VISIONGATE_RUN_DIRECTORY": settings.run_directory,
        "VISIONGATE_MODEL_REPOSITORY": settings.model_repository,
        "VISIONGATE_TIERS_FILE": settings.tiers_file,
    }
    return {name: str(path) for name, path in paths.items() if path is not None}


def _reachable(host: str) -> str:
    return "127.0.0.1" if host in {"0.0.0.0", "::"} else host  # noqa: S104 - compared with, not bound to


def _is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        # As servers do: connections that are still closing from the last run do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True
