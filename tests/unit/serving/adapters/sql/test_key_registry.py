from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from serving.adapters.memory.clock import ManualClock
from serving.adapters.sql.database import Database
from serving.adapters.sql.key_registry import KeyRegistry
from serving.adapters.tiers import load_tiers
from serving.errors import OperatorError


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def registry(tmp_path: Path, clock: ManualClock) -> AsyncIterator[KeyRegistry]:
    database = Database(f"sqlite:///{tmp_path}/keys.db")
    secret = SecretStr("a secret for tests only")
    yield KeyRegistry(database, server_secret=secret, tiers=load_tiers(None), clock=clock)
    await database.close()


def everything_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir())


async def test_at_first_there_are_no_keys(registry: KeyRegistry) -> None:
    assert list(await registry.list()) == []


async def test_keys_are_listed_as_issued_oldest_first(registry: KeyRegistry, clock: ManualClock) -> None:
    issued = []
    for tier, models in (("pro", None), ("free", ["shapes", "faces"])):
        issued.append(
            await registry.create(
                user="ada", tier=tier, models=models, expires_at=clock.now() + timedelta(days=30)
            )
        )
        clock.advance(1)

    assert list(await registry.list()) == [key.record for key in issued]


async def test_the_file_never_holds_the_secret(registry: KeyRegistry, tmp_path: Path) -> None:
    issued = await registry.create(user="ada", tier="pro")

    kept = everything_in(tmp_path)

    assert issued.record.prefix.encode() in kept
    assert issued.api_key.secret.encode() not in kept


async def test_an_unknown_tier_is_refused_and_nothing_kept(registry: KeyRegistry) -> None:
    with pytest.raises(OperatorError, match="enterprise, free, pro"):
        await registry.create(user="ada", tier="gold")

    assert list(await registry.list()) == []


async def test_revoking_twice_keeps_the_first_moment(registry: KeyRegistry, clock: ManualClock) -> None:
    issued = await registry.create(user="ada", tier="pro")
    clock.advance(60)
    first = await registry.revoke(issued.record.id)
    clock.advance(60)
    second = await registry.revoke(issued.record.id)

    assert first == second
    assert first.revoked_at == issued.record.created_at + timedelta(seconds=60)
    assert first.state(clock.now()) == "revoked"


async def test_revoking_one_key_leaves_the_others(registry: KeyRegistry) -> None:
    one, other = [await registry.create(user="ada", tier="pro") for _ in range(2)]

    await registry.revoke(one.record.id)

    states = {record.id: record.revoked_at is not None for record in await registry.list()}
    assert states == {one.record.id: True, other.record.id: False}


@pytest.mark.parametrize("key_id", ["", "key_unknown", "'; DROP TABLE api_keys; --"])
async def test_an_unknown_id_is_named(registry: KeyRegistry, key_id: str) -> None:
    with pytest.raises(OperatorError, match="There is no key"):
        await registry.revoke(key_id)
