"""Everything that keeps accounts, as processes on one machine: gateways, consumer, Redis, PostgreSQL.

As under Ray, the gateways share a run directory, and each has ports of its own.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.support.gateways import HTTP_TIMEOUT, GatewayProcess, MeterProcess, RedisProcess
from tests.support.postgresql import PostgresqlServer
from tests.support.programs import Program
from tests.support.stack import COMMAND, ROOT

REQUEST_TIMEOUT_SECONDS = 5
REDIS_TIMEOUT_SECONDS = 0.5  # machines that run tests are busy ones
COMMAND_TIMEOUT_SECONDS = 60
POLL_SECONDS = 0.02
ADMIN_TOKEN = "the admin of tests"


@dataclass(frozen=True, slots=True)
class IssuedKey:
    id: str
    api_key: str


class Site:
    """Everything but Triton, which it is told of. `tiers` is the text of the tier table, to be edited."""

    def __init__(
        self,
        folder: Path,
        *,
        postgresql: PostgresqlServer | None,
        triton_url: str,
        model_repository: Path,
        tiers: str,
        accounts: Sequence[str],
    ) -> None:
        """postgresql: None keeps keys and ledger in SQLite. accounts: of each gateway, usually `real`."""
        self.folder = folder
        self.postgresql = postgresql
        self.tiers_file = folder / "tiers.yaml"
        self.tiers_file.write_text(tiers)
        self.run_directory = folder / ".run"
        self.run_directory.mkdir()
        self.database_url = (
            f"sqlite:///{self.run_directory / 'visiongate.db'}"
            if postgresql is None
            else postgresql.new_database(f"site_{os.getpid()}_{time.monotonic_ns()}")
        )
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("VISIONGATE_")}
        self.redis = RedisProcess(folder, inherited)
        settings = {
            "RUN_DIRECTORY": str(self.run_directory),
            "MODEL_REPOSITORY": str(model_repository),
            "TIERS_FILE": str(self.tiers_file),
            "DATABASE_URL": self.database_url,
            "REDIS_URL": self.redis.url,
            "TRITON_URL": triton_url,
            "ADMIN_TOKEN": ADMIN_TOKEN,
            "GATEWAY_REPLICAS": str(len(accounts)),
            "REQUEST_TIMEOUT_SECONDS": str(REQUEST_TIMEOUT_SECONDS),
            "REDIS_TIMEOUT_SECONDS": str(REDIS_TIMEOUT_SECONDS),
        }
        self.environment = {
            **inherited,
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "200",
            **{f"VISIONGATE_{name}": value for name, value in settings.items()},
        }
        self.meter = MeterProcess(folder, self.environment)
        self.gateways = [self.new_gateway(number, each) for number, each in enumerate(accounts)]

    def new_gateway(self, number: int, accounts: str) -> GatewayProcess:
        return GatewayProcess(number, self.folder, self.environment, accounts)

    @property
    def servers(self) -> list[Program]:
        """In the order of their start."""
        return [self.redis, self.meter, *self.gateways]

    def start(self) -> None:
        self.redis.start()
        self.redis.await_ready()
        self.meter.start()  # it makes the tables; gateways that start beside it wait for them
        self.meter.await_ready()
        for gateway in self.gateways:
            gateway.start()
        for gateway in self.gateways:
            gateway.await_ready()

    def stop(self) -> None:
        """Whatever state it is in."""
        for server in reversed(self.servers):
            server.kill()

    def issue_key(self, tier: str) -> IssuedKey:
        issued = self._administer("POST", "/keys", {"user": "chaos", "tier": tier})
        return IssuedKey(issued["id"], issued["api_key"])

    def revoke_key(self, key_id: str) -> None:
        self._administer("DELETE", f"/keys/{key_id}")

    def edit_tiers(self, text: str) -> None:
        """As an editor saves: the new file appears whole."""
        draft = self.tiers_file.with_suffix(".draft")
        draft.write_text(text)
        draft.replace(self.tiers_file)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`visiongate …`, with the settings of this site."""
        return subprocess.run(
            [COMMAND, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_SECONDS,
            check=False,
        )

    def _administer(self, method: str, path: str, body: Mapping[str, str] | None = None) -> Any:
        answer = httpx.request(
            method,
            f"{self.gateways[0].url}/api/v1{path}",
            json=body,
            headers={"Authorization": f"Bearer {ADMIN_TOKEN}"},
            timeout=HTTP_TIMEOUT,
            trust_env=False,
        )
        assert answer.is_success, answer.text
        return answer.json()


@contextmanager
def running_site(site: Site) -> Iterator[Site]:
    try:
        site.start()
        yield site
    finally:
        site.stop()


async def seconds_until(is_so: Callable[[], bool], what: str, *, within_seconds: float) -> float:
    """How long it took, asked beside whatever else runs. Fails where that is more than `within_seconds`."""
    began = time.monotonic()
    while not await asyncio.to_thread(is_so):
        waited = time.monotonic() - began
        assert waited < within_seconds, f"not {what} within {within_seconds:g} s"
        await asyncio.sleep(POLL_SECONDS)
    return time.monotonic() - began
