"""How long a gateway believes what it has read of a key, on every kind of database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

import pytest
from sqlalchemy import delete, insert, update

from serving.adapters.key_changes import LocalKeyChanges
from serving.adapters.memory.clock import ManualClock
from serving.adapters.sql.database import Database
from serving.adapters.sql.key_registry import KeyRegistry
from serving.adapters.sql.key_store import MAX_CONFIRMED_SECONDS, SqlKeyStore
from serving.adapters.sql.key_tables import ApiKeyRow, KeyChangeRow, row_of_change
from serving.adapters.sql.key_watch import (
    LOOK_TIMEOUT_SECONDS,
    MAX_ANSWER_AGE_SECONDS,
    MOST_CHANGES,
    KeyChangeWatch,
)
from serving.domain.key_change import ChangedKeys, KeyChange
from serving.domain.key_record import IssuedKey
from serving.errors import BackendUnavailable, KeyExpired, KeyRevoked
from tests.support.keys import ACTOR, published_to, registry_of, store_of


class Server(Protocol):
    """What the `postgresql` fixture can do to its server."""

    def stop(self) -> None: ...
    def start(self) -> None: ...
    def freeze(self) -> None: ...
    def thaw(self) -> None: ...
    def new_database(self, name: str) -> str: ...


@dataclass(frozen=True)
class Gateway:
    """One gateway's database, store and safety net, and an operator elsewhere, who publishes nothing."""

    database: Database
    store: SqlKeyStore
    watch: KeyChangeWatch
    operator: KeyRegistry

    async def create(self, user: str = "ada") -> IssuedKey:
        return await self.operator.create(actor=ACTOR, user=user, tier="pro")

    async def tier_of(self, issued: IssuedKey) -> str:
        return (await self.store.authenticate(issued.api_key.reveal())).tier.name


@asynccontextmanager
async def running(url: str, clock: ManualClock) -> AsyncIterator[Gateway]:
    async with AsyncExitStack() as stack:
        databases = [Database(url) for _ in range(2)]
        for database in databases:
            stack.push_async_callback(database.close)
        store = store_of(databases[0], clock)
        stack.push_async_callback(store.close)
        watch = KeyChangeWatch(databases[0], store, clock)
        yield Gateway(databases[0], store, watch, registry_of(databases[1], clock))


@pytest.fixture
async def gateway(database_url: str, clock: ManualClock) -> AsyncIterator[Gateway]:
    async with running(database_url, clock) as made:
        yield made


async def change_its_tier_unseen(gateway: Gateway, issued: IssuedKey) -> None:
    """Past the audit table, so that a gateway that has not looked the key up again gives itself away."""
    async with gateway.database.writing() as session:
        await session.execute(
            update(ApiKeyRow).where(ApiKeyRow.id == issued.record.id).values(tier="enterprise")
        )


async def test_a_lost_message_is_found_at_the_next_look(gateway: Gateway, clock: ManualClock) -> None:
    revoked, rotated = await gateway.create(), await gateway.create()
    await gateway.watch.look()
    for key in (revoked, rotated):
        await gateway.tier_of(key)
    await gateway.operator.revoke(revoked.record.id, actor=ACTOR)
    await gateway.operator.rotate(rotated.record.id, actor=ACTOR, overlap=timedelta())

    await gateway.watch.look()

    with pytest.raises(KeyRevoked):
        await gateway.tier_of(revoked)
    with pytest.raises(KeyExpired):
        await gateway.tier_of(rotated)


async def test_a_disabled_users_keys_are_found_at_the_next_look(gateway: Gateway) -> None:
    of_ada, of_bob = [await gateway.create() for _ in range(2)], await gateway.create("bob")
    await gateway.watch.look()
    for key in (*of_ada, of_bob):
        await gateway.tier_of(key)
    await change_its_tier_unseen(gateway, of_bob)
    await gateway.operator.set_user_enabled("ada", enabled=False, actor=ACTOR)

    await gateway.watch.look()

    for key in of_ada:
        with pytest.raises(KeyRevoked):
            await gateway.tier_of(key)
    assert await gateway.tier_of(of_bob) == "pro"  # as it was remembered: nobody else is looked up for it


async def test_looks_that_find_nothing_save_the_look_ups_for_a_minute(
    gateway: Gateway, clock: ManualClock
) -> None:
    issued = await gateway.create()
    await gateway.watch.look()
    await gateway.tier_of(issued)
    await change_its_tier_unseen(gateway, issued)

    tiers = []
    for _ in range(round(MAX_CONFIRMED_SECONDS / 0.75)):
        clock.advance(0.75)
        await gateway.watch.look()
        tiers.append(await gateway.tier_of(issued))

    assert tiers == [*["pro"] * (len(tiers) - 1), "enterprise"]


async def test_without_a_look_within_the_second_the_key_is_looked_up_again(
    gateway: Gateway, clock: ManualClock
) -> None:
    issued = await gateway.create()
    await gateway.watch.look()
    await gateway.tier_of(issued)
    clock.advance(0.5)
    await gateway.watch.look()
    await gateway.operator.revoke(issued.record.id, actor=ACTOR)

    clock.advance(0.75)
    still = await gateway.tier_of(issued)
    clock.advance(0.25)

    assert still == "pro"
    with pytest.raises(KeyRevoked):
        await gateway.tier_of(issued)


async def test_the_first_look_believes_nothing_that_was_read_before_it(
    gateway: Gateway, clock: ManualClock
) -> None:
    issued = await gateway.create()
    await gateway.tier_of(issued)
    await gateway.operator.revoke(issued.record.id, actor=ACTOR)

    await gateway.watch.look()

    with pytest.raises(KeyRevoked):
        await gateway.tier_of(issued)


@pytest.mark.parametrize("changes", [MOST_CHANGES - 2, MOST_CHANGES - 1, 3 * MOST_CHANGES])
async def test_however_many_changes_there_were_none_is_missed(
    gateway: Gateway, clock: ManualClock, changes: int
) -> None:
    issued, untouched = await gateway.create(), await gateway.create()
    await gateway.watch.look()
    await gateway.tier_of(issued)
    change = KeyChange(clock.now(), ACTOR, "revoked", "ada", "key_of_somebody")
    async with gateway.database.writing() as session:
        await session.execute(insert(KeyChangeRow), [row_of_change(change)] * (changes - 1))
    await gateway.operator.revoke(issued.record.id, actor=ACTOR)

    await gateway.watch.look()
    await gateway.watch.look()

    with pytest.raises(KeyRevoked):
        await gateway.tier_of(issued)
    await gateway.tier_of(untouched)
    await change_its_tier_unseen(gateway, untouched)
    clock.advance(1.0)
    await gateway.watch.look()
    assert await gateway.tier_of(untouched) == "pro"  # looks confirm again what was read since


@pytest.mark.parametrize("keep_newest", [False, True])
async def test_a_restored_audit_table_that_counts_anew_hides_nothing(
    gateway: Gateway, clock: ManualClock, keep_newest: bool
) -> None:
    issued = await gateway.create()
    await gateway.create()
    await gateway.watch.look()
    await gateway.tier_of(issued)
    await gateway.operator.revoke(issued.record.id, actor=ACTOR)
    async with gateway.database.writing() as session:
        # As a backup of another day would have it: its newest row has an id that we know, or there is none.
        kept = 2 if keep_newest else 0
        await session.execute(delete(KeyChangeRow).where(KeyChangeRow.id != kept))
        if kept:
            await session.execute(update(KeyChangeRow).values(at=clock.now() - timedelta(days=1)))

    await gateway.watch.look()

    with pytest.raises(KeyRevoked):
        await gateway.tier_of(issued)


async def test_ids_count_up_in_the_order_of_the_commits(gateway: Gateway, clock: ManualClock) -> None:
    """Else a row with a smaller id could appear behind a gateway's back."""
    issued = await gateway.create()
    slow = KeyChange(clock.now(), ACTOR, "revoked", "ada", "key_slow")
    async with gateway.database.writing() as session:
        await session.execute(insert(KeyChangeRow).values(row_of_change(slow)))
        quick = asyncio.create_task(gateway.operator.revoke(issued.record.id, actor=ACTOR))
        done, _ = await asyncio.wait([quick], timeout=0.3)
        assert not done
    await quick

    ids = [row.change.key_id for row in await gateway.operator.history()]
    assert ids == [issued.record.id, "key_slow", issued.record.id]


async def test_rotations_at_once_follow_each_other(
    gateway: Gateway, database_url: str, clock: ManualClock
) -> None:
    issued = await gateway.create()
    async with AsyncExitStack() as stack:
        registries = []
        for _ in range(6):
            database = Database(database_url)
            stack.push_async_callback(database.close)
            registries.append(registry_of(database, clock))

        rotated = await asyncio.gather(
            *(each.rotate(issued.record.id, actor=ACTOR, overlap=timedelta(days=1)) for each in registries)
        )

    record = await gateway.operator.get(issued.record.id)
    assert record is not None
    assert {secret.prefix for secret in record.secrets} == {key.api_key.prefix for key in (issued, *rotated)}
    assert [secret.expires_at is None for secret in record.secrets] == [False] * 6 + [True]
    for key in (issued, *rotated):
        assert await gateway.tier_of(key) == "pro"
    actions = [row.change.action for row in await gateway.operator.history()]
    assert actions == ["created", *["rotated"] * 6]


async def test_what_is_published_counts_at_once(gateway: Gateway, clock: ManualClock) -> None:
    issued, other = await gateway.create(), await gateway.create()
    for key in (issued, other):
        await gateway.tier_of(key)
    await change_its_tier_unseen(gateway, other)

    await published_to(gateway.database, clock, gateway.store).revoke(issued.record.id, actor=ACTOR)

    with pytest.raises(KeyRevoked):
        await gateway.tier_of(issued)
    assert await gateway.tier_of(other) == "pro"


async def look_and_hear(gateway: Gateway, clock: ManualClock) -> None:
    """Of a database that fails, and a Redis that answers."""
    with pytest.raises(BackendUnavailable):
        await gateway.watch.look()
    gateway.store.confirm_published(clock.monotonic())


async def test_while_the_database_is_down_known_keys_work_as_long_as_the_subscription_is_healthy(
    postgresql: Server, clock: ManualClock
) -> None:
    async with running(postgresql.new_database("down"), clock) as gateway:
        issued, revoked, unknown = [await gateway.create() for _ in range(3)]
        await gateway.watch.look()
        began_at = clock.monotonic()
        for key in (issued, revoked):
            await gateway.tier_of(key)
        postgresql.stop()
        try:
            for _ in range(100):
                clock.advance(0.5)
                await look_and_hear(gateway, clock)
            assert await gateway.tier_of(issued) == "pro"
            with pytest.raises(BackendUnavailable):
                await gateway.tier_of(unknown)

            gateway.store.forget(ChangedKeys("ada", revoked.record.id))
            with pytest.raises(BackendUnavailable):
                await gateway.tier_of(revoked)

            while clock.monotonic() < began_at + MAX_CONFIRMED_SECONDS:
                assert await gateway.tier_of(issued) == "pro"
                clock.advance(0.5)
                await look_and_hear(gateway, clock)
            with pytest.raises(BackendUnavailable):
                await gateway.tier_of(issued)
        finally:
            postgresql.start()

        assert await gateway.tier_of(issued) == "pro"


async def test_while_the_database_is_down_and_nothing_confirms_no_key_works_longer_than_a_second(
    postgresql: Server, clock: ManualClock
) -> None:
    async with running(postgresql.new_database("both_down"), clock) as gateway:
        issued = await gateway.create()
        await gateway.watch.look()
        await gateway.tier_of(issued)
        postgresql.stop()
        try:
            clock.advance(0.75)
            within = await gateway.tier_of(issued)
            clock.advance(0.25)
            with pytest.raises(BackendUnavailable):
                await gateway.tier_of(issued)
        finally:
            postgresql.start()

    assert within == "pro"


async def test_an_unpublished_revocation_counts_though_looks_hang_and_the_subscription_is_healthy(
    postgresql: Server, clock: ManualClock
) -> None:
    """What Redis says of the time since is worth nothing: the revocation never went through it."""
    async with running(postgresql.new_database("frozen_gateway"), clock) as gateway:
        issued = await gateway.create()
        await gateway.watch.look()
        await gateway.tier_of(issued)
        await gateway.operator.revoke(issued.record.id, actor=ACTOR)
        postgresql.freeze()
        try:
            clock.advance(0.5)
            await look_and_hear(gateway, clock)
            assert await gateway.tier_of(issued) == "pro"  # which was read half a second ago
            clock.advance(0.5)
            gateway.store.confirm_published(clock.monotonic())
            with pytest.raises(BackendUnavailable):
                await gateway.tier_of(issued)
        finally:
            postgresql.thaw()


async def test_a_database_that_goes_down_after_a_silence_confirms_nothing_of_it(
    postgresql: Server, clock: ManualClock
) -> None:
    """In which a revocation may have been committed, and waited for as long as one does."""
    async with running(postgresql.new_database("silence"), clock) as gateway:
        issued = await gateway.create()
        await gateway.watch.look()
        await gateway.tier_of(issued)
        await gateway.operator.revoke(issued.record.id, actor=ACTOR)
        clock.advance(MAX_ANSWER_AGE_SECONDS)
        postgresql.stop()
        try:
            for _ in range(2):
                await look_and_hear(gateway, clock)
                with pytest.raises(BackendUnavailable):
                    await gateway.tier_of(issued)
                clock.advance(0.5)
        finally:
            postgresql.start()

        with pytest.raises(KeyRevoked):
            await gateway.tier_of(issued)


async def test_an_unpublished_change_counts_as_made_once_every_gateway_has_looked(
    gateway: Gateway, database_url: str, clock: ManualClock
) -> None:
    """`revoke` returns only then: this gateway looks while it waits."""
    waited_seconds: list[float] = []

    async def look_meanwhile(seconds: float) -> None:
        waited_seconds.append(seconds)
        await gateway.watch.look()

    issued = await gateway.create()
    await gateway.watch.look()
    await gateway.tier_of(issued)
    operator = registry_of(gateway.database, clock, wait=look_meanwhile)

    await operator.revoke(issued.record.id, actor=ACTOR)

    assert waited_seconds == [MAX_ANSWER_AGE_SECONDS + LOOK_TIMEOUT_SECONDS]
    with pytest.raises(KeyRevoked):
        await gateway.tier_of(issued)


async def test_a_published_change_waits_for_nobody(gateway: Gateway, clock: ManualClock) -> None:
    async def never(_: float) -> None:
        raise AssertionError

    issued = await gateway.create()
    operator = registry_of(gateway.database, clock, LocalKeyChanges(gateway.store), wait=never)

    await operator.revoke(issued.record.id, actor=ACTOR)


async def test_an_unpublished_change_is_no_success_where_the_database_goes_down_at_once(
    postgresql: Server, clock: ManualClock
) -> None:
    """No gateway may have seen it; done again later, it counts."""
    async with running(postgresql.new_database("unseen"), clock) as gateway:

        async def go_down(_: float) -> None:
            postgresql.stop()

        issued = await gateway.create()
        try:
            with pytest.raises(BackendUnavailable, match="Do it again"):
                await registry_of(gateway.database, clock, wait=go_down).revoke(issued.record.id, actor=ACTOR)
        finally:
            postgresql.start()

        record = await gateway.operator.revoke(issued.record.id, actor=ACTOR)
        assert record.revoked_at is not None


async def test_a_look_at_a_frozen_database_is_given_up_in_time(
    postgresql: Server, clock: ManualClock
) -> None:
    async with running(postgresql.new_database("frozen_look"), clock) as gateway:
        issued = await gateway.create()
        await gateway.watch.look()
        postgresql.freeze()
        try:
            async with asyncio.timeout(LOOK_TIMEOUT_SECONDS + 3.0):
                with pytest.raises(BackendUnavailable):
                    await gateway.watch.look()
        finally:
            postgresql.thaw()

        await gateway.watch.look()
        assert await gateway.tier_of(issued) == "pro"


async def test_a_use_is_written_down_and_never_goes_back(
    gateway: Gateway, database_url: str, clock: ManualClock
) -> None:
    used, unused, revoked = [await gateway.create() for _ in range(3)]
    await gateway.operator.revoke(revoked.record.id, actor=ACTOR)
    early = store_of(gateway.database, clock)
    await early.authenticate(used.api_key.reveal())
    clock.advance(5)
    used_at = clock.now()
    await gateway.tier_of(used)
    with pytest.raises(KeyRevoked):
        await gateway.tier_of(revoked)
    await gateway.store.close()

    await early.close()

    records = {record.id: record.last_used_at for record in await gateway.operator.list()}
    assert records == {used.record.id: used_at, unused.record.id: None, revoked.record.id: None}


async def test_a_use_that_could_not_be_written_down_is_written_later(
    gateway: Gateway, clock: ManualClock
) -> None:
    issued = await gateway.create()
    used_at = clock.now()
    await gateway.tier_of(issued)
    async with gateway.database.writing() as session:  # somebody who writes for longer than we wait
        await session.execute(update(ApiKeyRow).values(tier="free"))
        await gateway.store.close()

    await gateway.store.close()

    (record,) = await gateway.operator.list()
    assert record.last_used_at == used_at
