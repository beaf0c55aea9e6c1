"""Calls of scripts as `redis-benchmark` makes them, many times, each on another random key."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import redis
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from serving.adapters.limits import UNITS_PER_TOKEN
from serving.adapters.redis import keyspace
from serving.adapters.redis.admission import RedisAdmission
from serving.adapters.redis.client import RedisConnection
from serving.adapters.redis.scripts import Script
from serving.domain.tenant import Principal, Tier
from serving.metrics import Metrics

RANDOM = "__rand_int__"
"""What `redis-benchmark -r` replaces by a number of twelve digits, anew in each call."""


@dataclass(frozen=True, eq=False)
class Call:
    """needed: commands that Redis has to have run beforehand, once for every random number."""

    script: str
    keys: Sequence[str]
    arguments: Sequence[str]
    needed: Sequence[Sequence[str]] = ()

    def prepare(self, client: redis.Redis, *, random_keys: int) -> None:
        with client.pipeline(transaction=False) as pipeline:
            for number in range(random_keys if self.needed else 0):
                for command in self.needed:
                    pipeline.execute_command(  # type: ignore[no-untyped-call]  # redis-py leaves it without annotations
                        *(part.replace(RANDOM, f"{number:012}") for part in command)
                    )
            pipeline.execute()


TIER = Tier(
    "bench",
    rate_limit_per_minute=1000,
    burst=1000,
    monthly_quota=100_000,
    max_pictures_per_request=16,
    gpu=True,
    max_concurrent_requests=64,
)
"""With every limit, so that the script looks at all of them."""

TRIVIAL_READ = Call("return 1", (RANDOM,), ())
TRIVIAL_WRITE = Call("redis.call('SET', KEYS[1], ARGV[1]) return 1", (RANDOM,), ("1",))


async def captured_admission() -> Call:
    """What the gateway sends Redis for one picture, with the key's id and the request's left to chance."""
    connection = _Captured()
    admission = RedisAdmission(connection)
    key_id, request_id = "the_key_id", "the_request_id"
    principal = Principal(key_id, "bench", TIER, models=None)
    try:
        await admission.admit(principal, request_id=request_id, pictures=1, lease_seconds=35.0)
    except _CapturedError:
        pass
    finally:
        await connection.close()
    script, keys, arguments = connection.call
    account = keyspace.account(key_id).replace(key_id, RANDOM)
    level, now = str(TIER.burst * UNITS_PER_TOKEN), str(time.time_ns() // 1000)
    later = str(time.time_ns() // 1000 + 3_600_000_000)
    return Call(
        script.text,
        [key.replace(key_id, RANDOM) for key in keys],
        [str(argument).replace(request_id, RANDOM) for argument in arguments],
        # As a key has it that is in use: a full bucket, no request that may have lapsed.
        needed=[["HSET", account, "level", level, "filled_at", now, "open", "0", "lapses_at", later]],
    )


class _CapturedError(Exception):
    """In place of an answer."""


class _Captured(RedisConnection):
    """Notes what it is asked, and asks nobody."""

    call: tuple[Script, Sequence[str], Sequence[Any]]

    def __init__(self) -> None:
        nobody = SecretStr("redis://127.0.0.1:1/0")
        super().__init__(nobody, timeout_seconds=1.0, metrics=Metrics(CollectorRegistry()))

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Any] = (), **_: Any) -> Any:
        self.call = script, keys, args
        raise _CapturedError
