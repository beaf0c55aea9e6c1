"""A gateway, the ledger's consumer and Redis as processes of their own, each to be killed."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import httpx
import redis
from prometheus_client.parser import text_string_to_metric_families

from serving.redis_server import find_redis_server
from tests.support.ports import free_ports
from tests.support.programs import Program
from tests.support.stack import COMMAND

ACCOUNTS = "VISIONGATE_TEST_ACCOUNTS"
HTTP_TIMEOUT = httpx.Timeout(5.0)


class GatewayProcess(Program):
    def __init__(self, number: int, folder: Path, environment: Mapping[str, str], accounts: str) -> None:
        """accounts: of which kind, as `gateway_process` names them."""
        self.port, self._metrics_port = free_ports(2)
        self.url = f"http://127.0.0.1:{self.port}"
        super().__init__(
            f"gateway {number}",
            [sys.executable, "-m", "tests.support.gateway_process", str(self.port)],
            output=folder / f"gateway-{number}.txt",
            environment={
                **environment,
                ACCOUNTS: accounts,
                "VISIONGATE_METRICS_PORT": str(self._metrics_port),
            },
        )

    def answers(self) -> bool:
        try:
            return self.readiness().is_success
        except httpx.HTTPError:
            return False

    def readiness(self) -> httpx.Response:
        return _get(f"{self.url}/readyz")

    def series(self, name: str) -> float:
        """The value of a metric; of one with labels the sum, and 0 where there is none."""
        text = _get(f"http://127.0.0.1:{self._metrics_port}/metrics").text
        families = text_string_to_metric_families(text)
        return sum(each.value for family in families for each in family.samples if each.name == name)


class RedisProcess(Program):
    """What it has confirmed is in its append-only file, and that on the disk."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        (self.port,) = free_ports(1)
        self.url = f"redis://127.0.0.1:{self.port}/0"
        data = folder / "redis"
        data.mkdir()
        super().__init__(
            "redis",
            [
                find_redis_server(),
                *("--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(data)),
                *("--appendonly", "yes", "--appendfsync", "always", "--save", "", "--daemonize", "no"),
            ],
            output=folder / "redis.txt",
            environment=environment,
        )

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, socket_connect_timeout=1, socket_timeout=30)

    def answers(self) -> bool:
        with self.client() as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False


class MeterProcess(Program):
    """The ledger's consumer."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        (self._metrics_port,) = free_ports(1)
        super().__init__(
            "meter",
            [COMMAND, "meter"],
            output=folder / "meter.txt",
            environment={**environment, "VISIONGATE_METER_METRICS_PORT": str(self._metrics_port)},
        )

    def answers(self) -> bool:
        try:
            return _get(f"http://127.0.0.1:{self._metrics_port}/metrics").is_success
        except httpx.HTTPError:
            return False


def _get(url: str) -> httpx.Response:
    return httpx.get(
        url, timeout=HTTP_TIMEOUT, trust_env=False, verify=False
    )  # it takes a while to set up TLS
