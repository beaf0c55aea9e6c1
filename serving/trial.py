"""A gateway for oneself: a Triton, one gateway process and real HTTP for a model repository, without Ray.

What answers here is what answers behind `visiongate up`, from the body that is read to the body that is
written, so an export can be proven on it before anybody else sees the model. Everything is on loopback, on
ports that the system chooses, and gone when the block ends.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import uvicorn
from pydantic import SecretStr

from serving.adapters.catalog import FolderCatalog
from serving.adapters.database import Database
from serving.adapters.key_registry import KeyRegistry
from serving.adapters.tiers import load_tiers
from serving.clock import SystemClock
from serving.errors import OperatorError
from serving.settings import MEBIBYTE, Settings
from serving.triton.launcher import TritonPorts, TritonServer
from serving.triton.workspace import Workspace, default_parent
from serving.wiring import build

LOOPBACK = "127.0.0.1"
PORTS = range(20_000, 29_000)
PORTS_FOR_CLIENTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
START_TIMEOUT_SECONDS = 90.0
STOP_TIMEOUT_SECONDS = 30.0
POLL_SECONDS = 0.05
TIER = """\
tiers:
  trial:
    rate_limit_per_minute: 100000000
    burst: 100000000
    monthly_quota: null
    max_pictures_per_request: 1
    gpu: true
    price_per_1000: "0"
    price_per_month: "0"
"""


@dataclass(frozen=True, slots=True)
class Trial:
    """refused: by model, why this gateway does not serve it. served: those that answer now."""

    url: str
    api_key: str
    triton_version: str
    served: tuple[str, ...]
    refused: Mapping[str, str]


@contextmanager
def running_trial(model_repository: Path) -> Iterator[Trial]:
    """Raises OperatorError, with Triton's reason, where a model does not load."""
    scan = FolderCatalog(model_repository).scan()
    with ExitStack() as stack:
        workspace = Workspace(default_parent())  # where we are killed, the next run removes it
        stack.callback(workspace.close)
        folder = workspace.path
        *triton_ports, metrics_port = _ports_of_nobody(4)
        triton = TritonServer(
            model_repository,
            sorted(scan.models),
            TritonPorts(*triton_ports),
            executable=Settings().triton_executable,
            drain_timeout_seconds=0.0,  # when the block ends, nothing is under way
        )
        stack.enter_context(triton)
        settings = _settings(folder, model_repository, triton.grpc_url, metrics_port)
        api_key = asyncio.run(_issue_key(settings))
        url = stack.enter_context(_served(settings))
        triton.wait_ready(START_TIMEOUT_SECONDS)
        trial = Trial(url, api_key, _version_of(triton), tuple(sorted(scan.models)), scan.refused)
        _await_models(trial)
        yield trial


def _settings(folder: Path, model_repository: Path, triton_grpc_url: str, metrics_port: int) -> Settings:
    tiers_file = folder / "tiers.yaml"
    tiers_file.write_text(TIER)
    return Settings(
        run_directory=folder,
        database_url=f"sqlite:///{folder / 'trial.db'}",
        key_hash_secret=SecretStr(secrets.token_urlsafe(32)),
        model_repository=model_repository,
        triton_url=triton_grpc_url,
        metrics_port=metrics_port,  # a stack that is started beside us wants its own
        tiers_file=tiers_file,
        max_body_bytes=256 * MEBIBYTE,
        max_bodies_bytes=1024 * MEBIBYTE,
    )


@contextmanager
def _served(settings: Settings) -> Iterator[str]:
    """The gateway's address, once it listens."""
    made: Future[uvicorn.Server] = Future()

    async def serve(listener: socket.socket) -> None:
        try:
            # In the loop that will run it: gRPC's clients belong to one.
            config = uvicorn.Config(build(settings), log_config=None, access_log=False, lifespan="on")
            made.set_result(uvicorn.Server(config))
        except BaseException as error:
            made.set_exception(error)
            return
        await made.result().serve(sockets=[listener])

    with socket.create_server((LOOPBACK, 0)) as listener:
        thread = threading.Thread(target=asyncio.run, args=(serve(listener),), name="gateway")
        thread.start()
        try:
            made.result()
            yield f"http://{LOOPBACK}:{listener.getsockname()[1]}"
        finally:
            # Also where we are interrupted before it is made: Python waits for the thread, for ever.
            with suppress(Exception):
                made.result(STOP_TIMEOUT_SECONDS).should_exit = True
            thread.join(STOP_TIMEOUT_SECONDS)


async def _issue_key(settings: Settings) -> str:
    database = Database(settings.database_url)
    try:
        registry = KeyRegistry(
            database,
            server_secret=settings.key_hash_secret,
            tiers=load_tiers(settings.tiers_file),
            clock=SystemClock(),
        )
        issued = await registry.create(user="visiongate-try", tier="trial")
    finally:
        await database.close()
    return issued.api_key.reveal()


def _version_of(triton: TritonServer) -> str:
    described = httpx.get(f"{triton.http_url}/v2", timeout=10.0, trust_env=False).raise_for_status()
    return str(described.json()["version"])


def _await_models(trial: Trial) -> None:
    give_up = time.monotonic() + START_TIMEOUT_SECONDS
    headers = {"Authorization": f"Bearer {trial.api_key}"}
    with httpx.Client(base_url=trial.url, headers=headers, timeout=10.0, trust_env=False) as client:
        while waiting := [name for name in trial.served if not _answers(client, name)]:
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
