"""What the program in a checkpoint reaches, if it runs: everything unconfined, nothing confined."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.integration.export_pipeline.conftest import HostileJob
from tests.support.hostile_stages import REACHES
from tests.support.waiting import eventually


@dataclass(frozen=True)
class World:
    """places: what `reach` is told of it."""

    places: dict[str, object]
    secret: Path
    model: Path
    victim: subprocess.Popen[bytes]
    environment: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, hostile_environment: Path) -> Iterator[World]:
    """Everything around a job that is not its business."""
    root = tmp_path_factory.mktemp("world")
    environment = root / "environment"
    shutil.copytree(hostile_environment, environment, symlinks=True)
    site_packages = next(environment.glob("lib/*/site-packages"))
    secret = root / "runs" / "neighbour" / "admin.token"
    secret.parent.mkdir(parents=True)
    secret.write_text("hunter2")
    secret.chmod(0o600)
    repository = root / "model_repo"
    repository.mkdir()
    for name in ("model.onnx", "another.onnx"):
        (repository / name).write_bytes(b"weights")
    token = uuid.uuid4().hex
    victim = subprocess.Popen(
        [sys.executable, "-I", "-c", "import signal; print(flush=True); signal.pause()"],
        env={"AWS_SECRET_ACCESS_KEY": "hunter2"},
        stdout=subprocess.PIPE,
    )
    assert victim.stdout is not None
    victim.stdout.readline()
    try:
        with _listening(("127.0.0.1", 0)) as tcp, _listening(str(root / "s")), _listening(f"\0{token}"):
            places: dict[str, object] = {
                "secret": str(secret),
                "repository": str(repository),
                "model": str(repository / "model.onnx"),
                "model_to_take": str(repository / "another.onnx"),
                "package": str(site_packages / "export_pipeline"),
                "site_packages": str(site_packages),
                "outside": str(root / "outside"),
                "daemon_pid_file": str(root / "daemon.pid"),
                "token": token,
                "victim": victim.pid,
                "tcp": tcp.getsockname(),
                "unix": str(root / "s"),
            }
            yield World(places, secret, repository / "model.onnx", victim, environment)
    finally:
        victim.kill()
        victim.wait()
        victim.stdout.close()
        Path(f"/dev/shm/{token}").unlink(missing_ok=True)


def _listening(address: tuple[str, int] | str) -> socket.socket:
    server = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    server.bind(address)
    server.listen()
    return server


@pytest.fixture(scope="module")
def confined(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return _reach(world, tmp_path_factory.mktemp("confined"), unconfined=False)


@pytest.fixture(scope="module")
def unconfined(
    world: World, confined: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Asks for the confined attempts, so that the world was whole for them."""
    assert confined
    return _reach(world, tmp_path_factory.mktemp("unconfined"), unconfined=True)


def _reach(world: World, path: Path, *, unconfined: bool) -> dict[str, str]:
    job = HostileJob(path / "job", world.environment, {"inspect": ["reach", world.places]})
    job.run(unconfined=unconfined)
    outcomes: dict[str, str] = job.result()
    return outcomes


@pytest.mark.parametrize("attempt", REACHES)
def test_confined_it_cannot(attempt: str, confined: dict[str, str]) -> None:
    assert confined[attempt] != "succeeded"


def test_the_world_is_as_it_was(confined: dict[str, str], world: World) -> None:
    assert set(confined) == set(REACHES)
    assert world.secret.read_text() == "hunter2"
    assert world.secret.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in world.model.parent.iterdir()) == ["another.onnx", "model.onnx"]
    assert world.model.read_bytes() == b"weights"
    assert world.victim.poll() is None
    assert not list(world.environment.glob("lib/*/site-packages/planted.pth"))


# The kernel or its owner may have switched these off for everyone.
MAY_FAIL_ANYHOW = {"use io_uring", "enter a namespace", "trace a process", "read a process's memory"}
MAY_FAIL_ANYHOW |= set() if os.geteuid() == 0 else {"have a capability", "read the system's secrets"}


@pytest.mark.parametrize("attempt", [name for name in REACHES if name not in MAY_FAIL_ANYHOW])
def test_unconfined_it_can(attempt: str, unconfined: dict[str, str]) -> None:
    assert unconfined[attempt] == "succeeded"


def test_even_unconfined_no_daemon_stays(unconfined: dict[str, str], world: World) -> None:
    daemon = int(Path(str(world.places["daemon_pid_file"])).read_text())

    assert unconfined["leave a daemon"] == "succeeded"
    assert eventually(lambda: not psutil.pid_exists(daemon), within_seconds=5.0)
