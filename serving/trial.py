"""A gateway for oneself: a Triton, one gateway process and real HTTP for a model repository, without Ray.

What answers here is what answers behind `visiongate up`, from the body that is read to the body that is
written, so an export can be proven on it before anybody else sees the model. Everything is on loopback, on
ports that the system chooses, and gone when the block ends.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
import socket
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from pydantic import SecretStr
from pydantic_settings import PydanticBaseSettingsSource

from serving.adapters.catalog import FolderCatalog
from serving.adapters.key_changes import LocalKeyChanges
from serving.adapters.sql.database import Database
from serving.adapters.sql.key_registry import KeyRegistry
from serving.adapters.tiers import load_tiers
from serving.clock import SystemClock
from serving.errors import OperatorError
from serving.settings import MEBIBYTE, Settings
from serving.triton.launcher import ModelsNotLoaded, TritonPorts, TritonServer
from serving.triton.workspace import Workspace, default_parent
from serving.wiring import build

logger = logging.getLogger("visiongate.try")  # not below `serving`, whose log goes with the trial's folder

TRITON_EXECUTABLE = "VISIONGATE_TRITON_EXECUTABLE"
LOOPBACK = "127.0.0.1"
PORTS = range(20_000, 29_000)
PORTS_FOR_CLIENTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
START_TIMEOUT_SECONDS = 90.0
STOP_TIMEOUT_SECONDS = 10.0
"""With what Triton takes to end, less than `visiongate-export` waits for us."""
ANSWERS_MAY_TAKE_SECONDS = 2
"""Of those that are under way when the block ends."""
POLL_SECONDS = 0.05
TIER = """\
tiers:
  trial:
    rate_limit_per_minute: 100000000
    burst: 100000000
    monthly_quota: null
    max_pictures_per_request: 1
    max_concurrent_requests: null
    priority: 1
    gpu: true
    price_per_1000: "0"
    price_per_month: "0"
"""


class TrialSettings(Settings):
    """Of a gateway that may run here as well, no setting is for us: nothing comes from the environment."""

    @classmethod
    def settings_customise_sources(cls, *_: Any, **sources: Any) -> tuple[PydanticBaseSettingsSource, ...]:
        return (sources["init_settings"],)


@dataclass(frozen=True, slots=True)
class Trial:
    """refused: by model, why this gateway does not serve it. served: those that answer now.

    not_loaded: those of the refused that the gateway would serve, and Triton cannot load.
    """

    url: str
    api_key: str
    triton_version: str
    served: tuple[str, ...]
    refused: Mapping[str, str]
    not_loaded: Collection[str]


@contextmanager
def running_trial(model_repository: Path) -> Iterator[Trial]:
    """Raises OperatorError where Triton or the gateway does not start."""
    scan = FolderCatalog(model_repository).verified()
    with ExitStack() as stack:
        workspace = Workspace(default_parent())  # where we are killed, the next run removes it
        stack.callback(workspace.close)
        folder = workspace.path
        *triton_ports, metrics_port = _ports_of_nobody(4)
        triton = TritonServer(
            model_repository,
            sorted(scan.models),
            TritonPorts(*triton_ports),
            executable=Path(executable) if (executable := os.environ.get(TRITON_EXECUTABLE)) else None,
            drain_timeout_seconds=0.0,  # when the block ends, nothing is under way
        )
        stack.enter_context(triton)
        settings = _settings(folder, model_repository, triton.grpc_url, metrics_port)
        api_key = asyncio.run(_issue_key(settings))
        url, gateway_ended = stack.enter_context(_served(settings))
        not_loaded = _not_loaded(triton)
        trial = Trial(
            url,
            api_key,
            _version_of(triton),
            served=tuple(sorted(scan.models.keys() - not_loaded.keys())),
            refused={**scan.refused, **not_loaded},
            not_loaded=not_loaded.keys(),
        )
        _await_models(trial, gateway_ended)
        yield trial


def _not_loaded(triton: TritonServer) -> Mapping[str, str]:
    try:
        triton.wait_ready(START_TIMEOUT_SECONDS)
    except ModelsNotLoaded as error:
        return error.reasons
    return {}


def _settings(folder: Path, model_repository: Path, triton_grpc_url: str, metrics_port: int) -> Settings:
    tiers_file = folder / "tiers.yaml"
    tiers_file.write_text(TIER)
    return TrialSettings(
        run_directory=folder,
        database_url=f"sqlite:///{folder / 'trial.db'}",
        key_hash_secret=SecretStr(secrets.token_urlsafe(32)),
        admin_token=SecretStr(secrets.token_urlsafe(32)),  # which nobody is told
        model_repository=model_repository,
        triton_url=triton_grpc_url,
        metrics_port=metrics_port,  # a stack that is started beside us wants its own
        tiers_file=tiers_file,
        max_body_bytes=256 * MEBIBYTE,
        max_bodies_bytes=1024 * MEBIBYTE,
    )


@contextmanager
def _served(settings: Settings) -> Iterator[tuple[str, Future[None]]]:
    """The gateway's address, once it listens, and how it ended, once it has."""
    made: Future[uvicorn.Server] = Future()
    ended: Future[None] = Future()
    listener = socket.create_server((LOOPBACK, 0))
    url = f"http://{LOOPBACK}:{listener.getsockname()[1]}"

    def run() -> None:
        try:
            with listener:  # however this ends, nobody is kept waiting for an answer
                asyncio.run(_serve(settings, listener, made))
        except BaseException as error:
            ended.set_exception(error)
            if not made.done():
                made.set_exception(error)
        else:
            ended.set_result(None)

    # A daemon: should it not end in time, Python would wait for it.
    thread = threading.Thread(target=run, name="gateway", daemon=True)
    thread.start()
    try:
        made.result()
        yield url, ended
    finally:
        logging.getLogger("uvicorn.error").disabled = True  # what is under way is cut off, as it should be
        with suppress(Exception):
            made.result(STOP_TIMEOUT_SECONDS).should_exit = True
        thread.join(STOP_TIMEOUT_SECONDS)
        if thread.is_alive():
            logger.warning("the gateway did not end within %g s", STOP_TIMEOUT_SECONDS)


async def _serve(settings: Settings, listener: socket.socket, made: Future[uvicorn.Server]) -> None:
    # Built in the loop that will run it: gRPC's clients belong to one.
    config = uvicorn.Config(
        build(settings, alone=True),
        log_config=None,
        access_log=False,
        lifespan="on",
        timeout_graceful_shutdown=ANSWERS_MAY_TAKE_SECONDS,
    )
    server = uvicorn.Server(config)
    made.set_result(server)
    try:
        await server.serve(sockets=[listener])
    except SystemExit:  # as uvicorn ends its own process
        raise OperatorError("it could not start, and has said why") from None


async def _issue_key(settings: Settings) -> str:
    database = Database(settings.database_url)
    try:
        registry = KeyRegistry(
            database,
            server_secret=settings.key_hash_secret,
            tiers=load_tiers(settings.tiers_file),
            clock=SystemClock(),
            publisher=LocalKeyChanges(),  # its gateway has not started yet
        )
        issued = await registry.create(actor="trial", user="visiongate-try", tier="trial")
    finally:
        await database.close()
    return issued.api_key.reveal()


def _version_of(triton: TritonServer) -> str:
    described = httpx.get(f"{triton.http_url}/v2", timeout=10.0, trust_env=False).raise_for_status()
    return str(described.json()["version"])


def _await_models(trial: Trial, gateway_ended: Future[None]) -> None:
    give_up = time.monotonic() + START_TIMEOUT_SECONDS
    headers = {"Authorization": f"Bearer {trial.api_key}"}
    with httpx.Client(base_url=trial.url, headers=headers, timeout=10.0, trust_env=False) as client:
        while waiting := [name for name in trial.served if not _answers(client, name)]:
            if gateway_ended.done():
                error = gateway_ended.exception()
                raise OperatorError(f"The gateway has ended: {error or 'nobody asked it to'}") from error
            if time.monotonic() > give_up:
                raise OperatorError(f"The gateway does not serve {', '.join(waiting)}.")
            time.sleep(POLL_SECONDS)


def _answers(client: httpx.Client, model: str) -> bool:
    try:
        return client.get(f"/v1/models/{model}").status_code == httpx.codes.OK
    except httpx.HTTPError:  # it does not listen yet
        return False


def _ports_of_nobody(count: int) -> list[int]:
    """Ports that nobody listens on and that the system gives to no client, such as ours that wait for Triton.

    Of those that it does give, a client that is refused there may get its own target, and so take it.
    """
    first_given = int(PORTS_FOR_CLIENTS.read_text().split()[0])
    candidates = random.sample(PORTS, len(PORTS)) if first_given >= PORTS.stop else [0] * count
    found: list[int] = []
    with ExitStack() as stack:
        for port in candidates:
            with suppress(OSError):
                listener = stack.enter_context(socket.create_server((LOOPBACK, port)))
                found.append(int(listener.getsockname()[1]))
            if len(found) == count:
                return found
    raise OperatorError(f"There are no {count} free ports on this machine.")
