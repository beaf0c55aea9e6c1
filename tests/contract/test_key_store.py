"""Every form of `KeyStore` says the same of the same key."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

import pytest
from pydantic import SecretStr

from serving.adapters.memory.clock import ManualClock
from serving.adapters.memory.keys import InMemoryKeyStore
from serving.adapters.sql.database import Database
from serving.adapters.sql.key_registry import KeyRegistry
from serving.adapters.sql.key_store import SqlKeyStore
from serving.adapters.tiers import load_tiers
from serving.domain.api_key import ApiKey, KeyHasher
from serving.domain.key_record import IssuedKey, issue_key
from serving.errors import InternalError, KeyExpired, KeyRevoked, Unauthenticated
from serving.ports import KeyStore

SERVER_SECRET = SecretStr("a secret for tests only")
TIERS = load_tiers(None)


class House(Protocol):
    """One form of the port, with the other side of it: who issues and revokes keys."""

    @property
    def store(self) -> KeyStore: ...

    async def create(
        self, *, tier: str = "pro", models: Iterable[str] | None = None, expires_at: datetime | None = None
    ) -> IssuedKey: ...

    async def revoke(self, key_id: str) -> None: ...

    def another_store(self) -> KeyStore:
        """As a gateway would have it that starts now."""


class MemoryHouse:
    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self.store = InMemoryKeyStore(server_secret=SERVER_SECRET, tiers=TIERS, clock=clock)

    async def create(
        self, *, tier: str = "pro", models: Iterable[str] | None = None, expires_at: datetime | None = None
    ) -> IssuedKey:
        issued = issue_key(
            user="ada",
            tier=tier,
            models=models,
            expires_at=expires_at,
            tiers=TIERS,
            hasher=KeyHasher(SERVER_SECRET),
            now=self._clock.now(),
        )
        self.store.add(issued.record)
        return issued

    async def revoke(self, key_id: str) -> None:
        self.store.revoke(key_id)

    def another_store(self) -> InMemoryKeyStore:
        return self.store


class SqlHouse:
    def __init__(self, database: Database, clock: ManualClock, stack: AsyncExitStack) -> None:
        self._database = database
        self._clock = clock
        self._stack = stack
        self._registry = KeyRegistry(database, server_secret=SERVER_SECRET, tiers=TIERS, clock=clock)
        self.store = self.another_store()

    async def create(
        self, *, tier: str = "pro", models: Iterable[str] | None = None, expires_at: datetime | None = None
    ) -> IssuedKey:
        return await self._registry.create(user="ada", tier=tier, models=models, expires_at=expires_at)

    async def revoke(self, key_id: str) -> None:
        await self._registry.revoke(key_id)

    def another_store(self) -> SqlKeyStore:
        store = SqlKeyStore(self._database, server_secret=SERVER_SECRET, tiers=TIERS, clock=self._clock)
        self._stack.push_async_callback(store.close)
        return store


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
async def house(request: pytest.FixtureRequest, clock: ManualClock, tmp_path: Path) -> AsyncIterator[House]:
    if request.param == "memory":
        yield MemoryHouse(clock)
        return
    url = f"sqlite:///{tmp_path}/keys.db"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgresql").new_database(f"keys_{tmp_path.name.lower()}")
    async with AsyncExitStack() as stack:
        database = Database(url)
        stack.push_async_callback(database.close)
        yield SqlHouse(database, clock, stack)


def with_wrong_checksum(key: ApiKey) -> str:
    text = key.reveal()
    return text[:-1] + ("0" if text[-1] != "0" else "1")


def with_other_secret(key: ApiKey) -> str:
    return ApiKey(key.prefix, ApiKey.generate().secret).reveal()


async def test_a_fresh_key_is_its_owners(house: House) -> None:
    issued = await house.create(tier="enterprise")

    principal = await house.store.authenticate(issued.api_key.reveal())

    assert principal.key_id == issued.record.id
    assert principal.user == "ada"
    assert principal.tier == TIERS["enterprise"]
    assert principal.models is None
    assert principal.may_use("any model")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "pk_",
        "pk__",
        "not a key",
        "Bearer pk_abcdefghijkl_0123456789",
        "sk_abcdefghijkl_" + "a" * 38,
        "pk_abcdefghijkl_" + "ä" * 38,
        "pk_abcdefghijkl_" + "a" * 100_000,
        "\x00",
    ],
)
async def test_a_malformed_key_is_refused_without_being_quoted(house: House, text: str) -> None:
    with pytest.raises(Unauthenticated, match="malformed") as caught:
        await house.store.authenticate(text)

    assert caught.value.code == "unauthenticated"
    assert len(text) < 5 or text not in caught.value.detail


async def test_a_typo_is_called_malformed(house: House) -> None:
    issued = await house.create()

    with pytest.raises(Unauthenticated, match="malformed"):
        await house.store.authenticate(with_wrong_checksum(issued.api_key))


async def test_an_unknown_key_and_a_wrong_secret_get_the_same_answer(house: House) -> None:
    issued = await house.create()
    details = []
    for text in (ApiKey.generate().reveal(), with_other_secret(issued.api_key)):
        with pytest.raises(Unauthenticated) as caught:
            await house.store.authenticate(text)
        details.append((type(caught.value), caught.value.detail))

    assert details[0] == details[1] == (Unauthenticated, "This API key is unknown.")


async def test_a_wrong_secret_learns_nothing_of_a_revoked_key(house: House) -> None:
    issued = await house.create()
    await house.revoke(issued.record.id)

    with pytest.raises(Unauthenticated) as caught:
        await house.store.authenticate(with_other_secret(issued.api_key))

    assert caught.value.code == "unauthenticated"


async def test_a_key_expires_at_its_moment_even_when_it_was_just_used(
    house: House, clock: ManualClock
) -> None:
    issued = await house.create(expires_at=clock.now() + timedelta(seconds=10))
    clock.advance(9.75)
    await house.store.authenticate(issued.api_key.reveal())

    clock.advance(0.25)

    with pytest.raises(KeyExpired):
        await house.store.authenticate(issued.api_key.reveal())


async def test_a_revoked_key_stops_within_a_second(house: House, clock: ManualClock) -> None:
    issued = await house.create()
    await house.store.authenticate(issued.api_key.reveal())
    await house.revoke(issued.record.id)

    clock.advance(1.0)

    with pytest.raises(KeyRevoked):
        await house.store.authenticate(issued.api_key.reveal())


async def test_use_does_not_prolong_a_revoked_key(house: House, clock: ManualClock) -> None:
    issued = await house.create()
    await house.store.authenticate(issued.api_key.reveal())
    clock.advance(0.75)
    await house.store.authenticate(issued.api_key.reveal())
    await house.revoke(issued.record.id)

    clock.advance(0.25)

    with pytest.raises(KeyRevoked):
        await house.store.authenticate(issued.api_key.reveal())


async def test_a_new_store_refuses_a_revoked_key_at_once(house: House) -> None:
    issued = await house.create()
    await house.store.authenticate(issued.api_key.reveal())
    await house.revoke(issued.record.id)

    with pytest.raises(KeyRevoked):
        await house.another_store().authenticate(issued.api_key.reveal())


async def test_revoked_outweighs_expired(house: House, clock: ManualClock) -> None:
    issued = await house.create(expires_at=clock.now() + timedelta(seconds=1))
    await house.revoke(issued.record.id)
    clock.advance(5)

    with pytest.raises(KeyRevoked):
        await house.store.authenticate(issued.api_key.reveal())


async def test_allowed_models_come_with_the_key(house: House) -> None:
    issued = await house.create(models=["shapes", "faces", "shapes"])

    principal = await house.store.authenticate(issued.api_key.reveal())

    assert principal.models == frozenset({"shapes", "faces"})
    assert principal.may_use("shapes")
    assert not principal.may_use("cars")


async def test_two_hundred_at_once_get_their_own_answers(house: House) -> None:
    keys = [await house.create(models=[f"model-{number}"]) for number in range(4)]
    unknown = ApiKey.generate()

    answers = await asyncio.gather(
        *(house.store.authenticate(keys[number % 4].api_key.reveal()) for number in range(200)),
        *(house.store.authenticate(unknown.reveal()) for _ in range(50)),
        return_exceptions=True,
    )

    known, refused = answers[:200], answers[200:]
    assert [getattr(answer, "key_id", answer) for answer in known] == [
        keys[number % 4].record.id for number in range(200)
    ]
    assert {type(answer) for answer in refused} == {Unauthenticated}


async def test_a_tier_that_is_gone_is_our_fault_not_the_callers(clock: ManualClock, tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/keys.db")
    registry = KeyRegistry(database, server_secret=SERVER_SECRET, tiers=TIERS, clock=clock)
    try:
        issued = await registry.create(user="ada", tier="pro")
        store = SqlKeyStore(database, server_secret=SERVER_SECRET, tiers={"free": TIERS["free"]}, clock=clock)
        with pytest.raises(InternalError):
            await store.authenticate(issued.api_key.reveal())
    finally:
        await database.close()
