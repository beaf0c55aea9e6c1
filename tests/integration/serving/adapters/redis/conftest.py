"""Every kind of Redis there is, each started once, and empty for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from pydantic import SecretStr

from serving.adapters.redis.client import RedisConnection
from tests.support.metering import connect
from tests.support.redis import KINDS, running_cluster, running_redis


@pytest.fixture(scope="package", params=[*KINDS, "cluster"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecretStr]:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "cluster":
        with running_cluster(folder) as url:
            yield url
    else:
        with running_redis(request.param, folder) as server:
            yield server.url


@pytest.fixture
async def connection(url: SecretStr) -> AsyncIterator[RedisConnection]:
    connection = connect(url)
    await connection.redis.flushall()
    yield connection
    await connection.close()
