"""A tritonserver of our own, on the loopback interface only, with the models that it is told to load."""

from __future__ import annotations

import logging
import math
import re
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from serving.errors import OperatorError
from serving.process import ManagedProcess
from serving.process_guard import children_of
from serving.triton.installation import Installation
from serving.triton.workspace import Workspace, default_parent

ADDRESS = "127.0.0.1"
_POLL_SECONDS = 0.1
_HTTP_TIMEOUT = httpx.Timeout(2.0)
_KILL_AFTER_DRAIN_SECONDS = 5.0
_LEVELS = {"I": logging.INFO, "W": logging.WARNING, "E": logging.ERROR, "F": logging.CRITICAL}
_LOG_LINE = re.compile(r"([IWEF])\d{4} ")
_CRASH_LINE = re.compile(r"error|Signal \((6|7|8|11)\)", re.IGNORECASE)
_SAID_WITHOUT_A_GPU = re.compile(
    r"CudaDriverHelper has not been initialized|pinned system memory|initialize NVML|DCGM unable to start"
)


@dataclass(frozen=True, slots=True)
class TritonPorts:
    """Three different ports, for Triton's HTTP, gRPC and metrics."""

    http: int
    grpc: int
    metrics: int

    def __post_init__(self) -> None:
        if len(set(astuple(self))) != 3 or not all(1 <= port <= 65535 for port in astuple(self)):
            raise OperatorError(
                f"Triton needs three different ports between 1 and 65535, not {astuple(self)}."
            )

    def require_free(self) -> None:
        """Raises OperatorError, naming the first port that somebody listens on."""
        for field in fields(self):
            port = getattr(self, field.name)
            try:
                socket.create_server((ADDRESS, port)).close()
            except OSError as exc:
                raise OperatorError(
                    f"Port {port}, for Triton's {field.name}, cannot be used: {exc.strerror}."
                ) from exc


class ModelsNotLoaded(OperatorError):
    """The others are served nevertheless. reasons: Triton's own, by model."""

    def __init__(self, reasons: Mapping[str, str]) -> None:
        self.reasons = reasons
        described = (f"{name!r}: {why}" for name, why in reasons.items())
        super().__init__("Triton did not load the model " + "\nand ".join(described))


class TritonServer:
    """Serves `models` of `model_repository` until it is stopped, and again after every unasked end.

    executable: a tritonserver; None finds one (`Installation.find`).
    run_directory: where to keep what it needs while it runs; files in it must be allowed to be executed.
    drain_timeout_seconds: how long `stop` lets requests in flight finish.
    """

    def __init__(
        self,
        model_repository: Path,
        models: Sequence[str],
        ports: TritonPorts,
        *,
        executable: Path | None = None,
        run_directory: Path | None = None,
        drain_timeout_seconds: float = 10.0,
        logger: logging.Logger | None = None,
    ) -> None:
        self._model_repository = model_repository.resolve()
        self._models = tuple(models)
        self._ports = ports
        self._executable = executable
        self._run_directory = run_directory or default_parent()
        self._drain_timeout_seconds = drain_timeout_seconds
        self._logger = logger or logging.getLogger("serving.triton.server")
        self._cleanup = ExitStack()
        self._process: ManagedProcess | None = None

    @property
    def http_url(self) -> str:
        return f"http://{ADDRESS}:{self._ports.http}"

    @property
    def grpc_url(self) -> str:
        """`host:port`, as gRPC wants it."""
        return f"{ADDRESS}:{self._ports.grpc}"

    @property
    def metrics_url(self) -> str:
        return f"http://{ADDRESS}:{self._ports.metrics}/metrics"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    @property
    def restarts(self) -> int:
        return self._process.restarts if self._process is not None else 0

    def start(self) -> None:
        """Start it and return at once. Raises OperatorError for what can be known before."""
        for model in self._models:
            if not (self._model_repository / model).is_dir():
                raise OperatorError(f"The model repository {self._model_repository} has no model {model!r}.")
        self._ports.require_free()
        with ExitStack() as stack:
            workspace = Workspace(self._run_directory)
            stack.callback(workspace.close)
            self._process = self._make_process(Installation.find(self._executable), workspace)
            self._process.start()
            stack.callback(self._process.stop)
            self._cleanup = stack.pop_all()

    def wait_ready(self, timeout_seconds: float) -> None:
        """Return when every model can be asked.

        Raises ModelsNotLoaded when some never will; OperatorError, with what Triton says, for a server that
        ends before it is up, and when the time is over.
        """
        deadline = time.monotonic() + timeout_seconds
        restarts_before = self.restarts
        pause = threading.Event()
        with httpx.Client(base_url=self.http_url, timeout=_HTTP_TIMEOUT, trust_env=False) as client:
            while not self._is_ready(client):
                if self.restarts > restarts_before:
                    raise OperatorError(f"tritonserver ended while it was starting:\n{self._complaints()}")
                if time.monotonic() > deadline:
                    raise OperatorError(
                        f"tritonserver was not ready within {timeout_seconds:g} s:\n{self._complaints()}"
                    )
                pause.wait(_POLL_SECONDS)

    def stop(self) -> None:
        self._cleanup.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _make_process(self, installation: Installation, workspace: Workspace) -> ManagedProcess:
        backends = installation.backend_directory(workspace.path / "backends")
        return ManagedProcess(
            "tritonserver",
            [
                installation.executable,
                *self._arguments(backends, workspace.shared_memory_prefix),
                # Off by default in the servers that know it; those before let every client.
                *(["--allow-client-shm=true"] if installation.knows("--allow-client-shm") else []),
            ],
            logger=self._logger,
            env=installation.environment(),
            level_of=level_of,
            before_start=workspace.clear_shared_memory,
            is_healthy=StubWatch(),
            stop_timeout_seconds=self._drain_timeout_seconds + _KILL_AFTER_DRAIN_SECONDS,
        )

    def _arguments(self, backends: Path, shared_memory_prefix: str) -> list[str]:
        return [
            f"--model-repository={self._model_repository}",
            f"--backend-directory={backends}",
            "--model-control-mode=explicit",
            *(f"--load-model={model}" for model in self._models),
            # One broken model must not take the others down; `wait_ready` says which it was, and why.
            "--exit-on-error=false",
            "--strict-readiness=false",
            # Our configurations are complete, and completing one costs a Python process at every load.
            "--disable-auto-complete-config",
            f"--http-address={ADDRESS}",
            f"--http-port={self._ports.http}",
            f"--grpc-address={ADDRESS}",
            f"--grpc-port={self._ports.grpc}",
            f"--metrics-address={ADDRESS}",
            f"--metrics-port={self._ports.metrics}",
            f"--exit-timeout-secs={math.ceil(self._drain_timeout_seconds)}",
            f"--backend-config=python,shm-region-prefix-name={shared_memory_prefix}",
            # For each model instance; it grows by as much whenever a batch does not fit.
            f"--backend-config=python,shm-default-byte-size={4 << 20}",
            f"--backend-config=python,shm-growth-byte-size={4 << 20}",
            "--backend-config=python,stub-timeout-seconds=30",
        ]

    def _is_ready(self, client: httpx.Client) -> bool:
        try:
            if client.get("/v2/health/ready").status_code != httpx.codes.OK:
                return False
            index = client.post("/v2/repository/index", json={}).raise_for_status().json()
        except httpx.HTTPError:
            return False
        return self._all_loaded(index)

    def _all_loaded(self, index: list[dict[str, Any]]) -> bool:
        """Triton answers only once it has tried every model, so one that is not ready will not become so."""
        versions = [entry for entry in index if entry["name"] in self._models and "state" in entry]
        failed = {
            entry["name"]: entry.get("reason", "no reason given")
            for entry in versions
            if entry["state"] == "UNAVAILABLE"
        }
        ready = {entry["name"] for entry in versions if entry["state"] == "READY"}
        if failed and ready | failed.keys() == set(self._models):
            raise ModelsNotLoaded(failed)
        return ready == set(self._models)

    def _complaints(self) -> str:
        lines = self._process.last_lines().splitlines() if self._process is not None else []
        return "\n".join([line for line in lines if level_of(line) >= logging.WARNING] or lines[-5:])


class StubWatch:
    """Whether all the Python stubs of a tritonserver live.

    Triton 2.51 goes on saying that a model is ready whose stub has died, answers its every request with an
    error and takes seconds to unload it (triton-inference-server/server#8604): a new start is the way out. A
    stub that Triton itself has ended is a zombie for a moment, never twice in a row.
    """

    def __init__(self) -> None:
        self._dead: set[int] = set()

    def __call__(self, pid: int) -> bool:
        seen_before = self._dead
        self._dead = {child for child, state in children_of(pid).items() if state == "Z"}
        return not self._dead & seen_before


def level_of(line: str) -> int:
    """The level of one line of Triton's log: `I1121 02:34:23.8 …`, a table's, or one of its libraries'."""
    if _SAID_WITHOUT_A_GPU.search(line) or line.startswith(("+", "|")):
        return logging.DEBUG
    if match := _LOG_LINE.match(line):
        return _LEVELS[match[1]]
    return logging.ERROR if _CRASH_LINE.match(line) else logging.INFO
