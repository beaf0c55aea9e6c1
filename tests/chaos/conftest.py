"""One site for the whole room: four gateways, the consumer, Redis, PostgreSQL and Triton, all real."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from serving.triton.launcher import TritonServer
from tests.support import fixed_box
from tests.support.chaos_terms import tier_table
from tests.support.ports import free_triton_ports
from tests.support.postgresql import running_postgresql
from tests.support.site import Site, running_site

TRITON_START_SECONDS = 120.0
GATEWAYS = 4


@pytest.fixture(scope="session")
def box_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("fixed_box")
    fixed_box.write_repository(repository)
    return repository


@pytest.fixture(scope="session")
def box_triton(box_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    with TritonServer(
        box_repository,
        [fixed_box.NAME],
        free_triton_ports(),
        run_directory=tmp_path_factory.mktemp("box_triton"),
    ) as server:
        server.wait_ready(TRITON_START_SECONDS)
        yield server


@pytest.fixture(scope="session")
def started_site(
    box_repository: Path, box_triton: TritonServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    with running_postgresql(durable=True) as postgresql:
        site = Site(
            tmp_path_factory.mktemp("site"),
            postgresql=postgresql,
            triton_url=box_triton.grpc_url,
            model_repository=box_repository,
            tiers=tier_table(),
            accounts=["real"] * GATEWAYS,
        )
        with running_site(site):
            yield site


@pytest.fixture
def site(started_site: Site) -> Site:
    """All of it up, whatever the last test has done to it."""
    for server in started_site.servers:
        if not server.is_running():
            server.start()
        server.await_ready()
    return started_site


@pytest.fixture
def triton_processes(box_triton: TritonServer) -> list[psutil.Process]:
    """Triton and all of its children."""
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if "tritonserver" in " ".join(process.cmdline())
    ]
