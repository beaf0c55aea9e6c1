"""A real tritonserver under our hands: started, broken in every way we know of, and gone when we are."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import psutil
import pytest

from serving.errors import OperatorError
from serving.triton.launcher import ModelsNotLoaded, TritonServer
from serving.triton.workspace import SHARED_MEMORY, Workspace
from tests.conftest import ONE_CPU_INSTANCE, TINY_MODELS
from tests.support import onnx_models
from tests.support.ports import free_ports, free_triton_ports
from tests.support.waiting import eventually

START_TIMEOUT_SECONDS = 60.0
Start = Callable[..., TritonServer]


def family(pid: int | None) -> list[psutil.Process]:
    server = psutil.Process(pid)
    return [server, *server.children(recursive=True)]


def are_gone(processes: list[psutil.Process]) -> bool:
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


def answer(server: TritonServer) -> float:
    body = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [41.0]}]}
    response = httpx.post(f"{server.http_url}/v2/models/add_one/infer", json=body, timeout=10.0)
    return float(response.raise_for_status().json()["outputs"][0]["data"][0])


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    text, config = TINY_MODELS["add_one"]
    onnx_models.write_entry(folder, "add_one", text, ONE_CPU_INSTANCE + config)
    return folder


@pytest.fixture
def start(repository: Path, tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def start_server(*models: str, executable: Path | None = None) -> TritonServer:
            server = TritonServer(
                repository,
                models or ["add_one"],
                free_triton_ports(),
                run_directory=tmp_path / "run",
                drain_timeout_seconds=2.0,
                executable=executable,
            )
            return stack.enter_context(server)

        yield start_server


def test_it_serves_on_the_loopback_interface_only_and_stops_without_a_trace(
    start: Start, tmp_path: Path
) -> None:
    server = start()
    server.wait_ready(START_TIMEOUT_SECONDS)
    assert answer(server) == 42.0
    assert httpx.get(server.metrics_url, timeout=10.0).status_code == httpx.codes.OK
    processes = family(server.pid)
    assert len(processes) == 2
    listeners = [each for each in processes[0].net_connections("inet") if each.status == psutil.CONN_LISTEN]
    assert {each.laddr.ip.removeprefix("::ffff:") for each in listeners} == {"127.0.0.1"}
    (workspace,) = (tmp_path / "run").glob("visiongate-triton-*")
    assert list(SHARED_MEMORY.glob(f"{workspace.name}-*"))

    server.stop()
    server.stop()

    assert are_gone(processes)
    assert server.pid is None
    assert not workspace.exists()
    assert not list(SHARED_MEMORY.glob(f"{workspace.name}-*"))


def test_a_killed_server_comes_back_with_its_models(start: Start) -> None:
    server = start()
    server.wait_ready(START_TIMEOUT_SECONDS)
    processes = family(server.pid)

    os.kill(server.pid or 0, signal.SIGKILL)

    assert eventually(lambda: server.restarts == 1)
    server.wait_ready(START_TIMEOUT_SECONDS)
    assert answer(server) == 42.0
    assert are_gone(processes)


def test_a_server_whose_model_process_was_killed_comes_back(start: Start) -> None:
    server = start()
    server.wait_ready(START_TIMEOUT_SECONDS)
    _, stub = family(server.pid)

    stub.kill()

    assert eventually(lambda: server.restarts == 1)
    server.wait_ready(START_TIMEOUT_SECONDS)
    assert answer(server) == 42.0


def test_a_broken_model_is_named_and_the_others_are_served(start: Start, repository: Path) -> None:
    text, config = TINY_MODELS["add_one"]
    onnx_models.write_entry(repository, "broken", text, ONE_CPU_INSTANCE + config)
    (repository / "broken" / "1" / "model.onnx").write_bytes(b"no model")
    server = start("add_one", "broken")

    with pytest.raises(ModelsNotLoaded, match=r"did not load the model 'broken': .*model\.onnx") as caught:
        server.wait_ready(START_TIMEOUT_SECONDS)

    assert list(caught.value.reasons) == ["broken"]

    assert answer(server) == 42.0


def test_two_servers_run_side_by_side(start: Start) -> None:
    servers = [start(), start()]

    for server in servers:
        server.wait_ready(START_TIMEOUT_SECONDS)
    servers[0].stop()

    assert answer(servers[1]) == 42.0


OWNER = """
import os, signal, sys
from pathlib import Path
from serving.triton.launcher import TritonPorts, TritonServer
ports = TritonPorts(*map(int, sys.argv[3:]))
server = TritonServer(Path(sys.argv[1]), ["add_one"], ports, run_directory=Path(sys.argv[2]))
server.start()
server.wait_ready(60)
print(server.pid, flush=True)
signal.pause()
"""


def test_when_its_owner_is_killed_it_ends_and_the_next_run_tidies_up(
    repository: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-c", OWNER, str(repository), str(run), *map(str, free_ports(3))]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        processes = family(int(owner.stdout.readline()))
        assert len(processes) == 2
        owner.kill()

    assert eventually(lambda: are_gone(processes))
    (left,) = run.glob("visiongate-triton-*")
    assert list(SHARED_MEMORY.glob(f"{left.name}-*"))

    Workspace(run).close()

    assert not left.exists()
    assert not list(SHARED_MEMORY.glob(f"{left.name}-*"))


def test_a_model_that_the_repository_lacks_is_refused_before_the_start(repository: Path) -> None:
    server = TritonServer(repository, ["add_one", "absent"], free_triton_ports())

    with pytest.raises(OperatorError, match="has no model 'absent'"):
        server.start()

    assert server.pid is None


@pytest.mark.parametrize("which", ["http", "grpc", "metrics"])
def test_a_taken_port_is_named_before_the_start(repository: Path, which: str) -> None:
    ports = free_triton_ports()
    port = getattr(ports, which)
    with socket.create_server(("127.0.0.1", port)):
        server = TritonServer(repository, ["add_one"], ports)

        with pytest.raises(OperatorError, match=f"Port {port}, for Triton's {which}, cannot be used"):
            server.start()


def stand_in(folder: Path, script: str, *, options: str = "") -> Path:
    """A program in place of tritonserver, in an installation that has NVIDIA's onnxruntime backend."""
    executable = folder / "bin" / "tritonserver"
    native = folder / "backends" / "onnxruntime" / "libtriton_onnxruntime.so"
    for path in (executable, native):
        path.parent.mkdir(parents=True)
        path.touch()
    asked_for_help = f"[ \"$1\" = --help ] && echo '{options}' && exit 1"
    executable.write_text(f"#!/bin/sh\n{asked_for_help}\n{script}\n")
    executable.chmod(0o755)
    return executable


def test_a_server_that_ends_while_starting_is_quoted(start: Start, tmp_path: Path) -> None:
    script = "echo 'E1121 02:34:23.823135 1 main.cc:1] \"the licence has run out\"'; exit 1"
    server = start(executable=stand_in(tmp_path / "triton", script))

    with pytest.raises(OperatorError, match=r"ended while it was starting:\n.*the licence has run out"):
        server.wait_ready(START_TIMEOUT_SECONDS)


def test_a_server_that_never_gets_ready_is_quoted(start: Start, tmp_path: Path) -> None:
    server = start(executable=stand_in(tmp_path / "triton", 'echo "$@"; exec sleep 600'))

    with pytest.raises(OperatorError, match=r"not ready within 0\.5 s") as caught:
        server.wait_ready(0.5)

    assert f"--backend-directory={tmp_path}/triton/backends " in str(caught.value)
    assert "--model-control-mode=explicit --load-model=add_one" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ("", False),
        ("  --allow-grpc <boolean>", False),  # before 26.04, when every client was let
        ("  --allow-client-shm <boolean>", True),
    ],
)
def test_shared_memory_is_allowed_where_it_has_to_be(
    start: Start, tmp_path: Path, options: str, allowed: bool
) -> None:
    script = 'echo "$@"; exec sleep 600'
    server = start(executable=stand_in(tmp_path / "triton", script, options=options))

    with pytest.raises(OperatorError, match="not ready within") as caught:
        server.wait_ready(0.5)

    assert ("--allow-client-shm=true" in str(caught.value)) is allowed
