"""A site of Redis and SQLite alone, and commands that find it by their settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.support.ports import free_ports
from tests.support.redis import RedisProcess, running_redis


@dataclass(frozen=True)
class Site:
    redis: RedisProcess
    database_url: str
    run_directory: Path
    environment: dict[str, str]

    @property
    def redis_url(self) -> SecretStr:
        return self.redis.url


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    with running_redis("redis-7", tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def site(redis_server: RedisProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """With nothing in it."""
    with redis_server.client() as client:
        client.flushall()
    database_url = f"sqlite:///{tmp_path}/ledger.db"
    environment = {
        "VISIONGATE_RUN_DIRECTORY": str(tmp_path / "run"),
        "VISIONGATE_DATABASE_URL": database_url,
        "VISIONGATE_REDIS_URL": redis_server.url.get_secret_value(),
        "VISIONGATE_METER_METRICS_PORT": str(free_ports(1)[0]),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return Site(redis_server, database_url, tmp_path / "run", environment)
