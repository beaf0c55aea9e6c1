"""Every form of `KeyStore` says the same of the same key."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest

from serving.adapters.memory.clock import ManualClock
from serving.adapters.sql.database import Database
from serving.adapters.sql.key_store import SqlKeyStore
from serving.domain.api_key import ApiKey
from serving.errors import InternalError, KeyExpired, KeyRevoked, Unauthenticated
from tests.support.keys import ACTOR, SERVER_SECRET, TIERS, House, registry_of


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
    await house.keys.revoke(issued.record.id, actor=ACTOR)

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
    await house.keys.revoke(issued.record.id, actor=ACTOR)

    clock.advance(1.0)

    with pytest.raises(KeyRevoked):
        await house.store.authenticate(issued.api_key.reveal())


async def test_use_does_not_prolong_a_revoked_key(house: House, clock: ManualClock) -> None:
    issued = await house.create()
    await house.store.authenticate(issued.api_key.reveal())
    clock.advance(0.75)
    await house.store.authenticate(issued.api_key.reveal())
    await house.keys.revoke(issued.record.id, actor=ACTOR)

    clock.advance(0.25)

    with pytest.raises(KeyRevoked):
        await house.store.authenticate(issued.api_key.reveal())


async def test_a_new_store_refuses_a_revoked_key_at_once(house: House) -> None:
    issued = await house.create()
    await house.store.authenticate(issued.api_key.reveal())
    await house.keys.revoke(issued.record.id, actor=ACTOR)

    with pytest.raises(KeyRevoked):
        await house.another_store().authenticate(issued.api_key.reveal())


async def test_revoked_outweighs_expired(house: House, clock: ManualClock) -> None:
    issued = await house.create(expires_at=clock.now() + timedelta(seconds=1))
    await house.keys.revoke(issued.record.id, actor=ACTOR)
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


async def test_a_rotated_keys_secrets_both_open_it_until_the_overlap_ends(
    house: House, clock: ManualClock
) -> None:
    earlier = await house.create(tier="enterprise", models=["shapes"])
    await house.store.authenticate(earlier.api_key.reveal())
    newer = await house.keys.rotate(earlier.record.id, actor=ACTOR, overlap=timedelta(seconds=10))
    ends_at = clock.now() + timedelta(seconds=10)

    clock.set_wall_clock(ends_at - timedelta(microseconds=1))
    clock.advance(1.0)
    clock.set_wall_clock(ends_at - timedelta(microseconds=1))
    before = [await house.store.authenticate(key.api_key.reveal()) for key in (earlier, newer)]
    clock.set_wall_clock(ends_at)

    assert {principal.key_id for principal in before} == {earlier.record.id}
    assert before[0].tier is before[1].tier
    assert before[0].models == before[1].models == frozenset({"shapes"})
    with pytest.raises(KeyExpired):
        await house.store.authenticate(earlier.api_key.reveal())
    assert (await house.store.authenticate(newer.api_key.reveal())).key_id == earlier.record.id


async def test_without_an_overlap_the_earlier_secret_ends_within_a_second(
    house: House, clock: ManualClock
) -> None:
    earlier = await house.create()
    await house.store.authenticate(earlier.api_key.reveal())
    newer = await house.keys.rotate(earlier.record.id, actor=ACTOR, overlap=timedelta())

    clock.advance(1.0)

    with pytest.raises(KeyExpired):
        await house.store.authenticate(earlier.api_key.reveal())
    assert (await house.store.authenticate(newer.api_key.reveal())).key_id == earlier.record.id


async def test_revoking_a_rotated_key_stops_all_of_its_secrets(house: House, clock: ManualClock) -> None:
    first = await house.create()
    second = await house.keys.rotate(first.record.id, actor=ACTOR, overlap=timedelta(days=1))
    for key in (first, second):
        await house.store.authenticate(key.api_key.reveal())
    await house.keys.revoke(first.record.id, actor=ACTOR)

    clock.advance(1.0)

    for key in (first, second):
        with pytest.raises(KeyRevoked):
            await house.store.authenticate(key.api_key.reveal())


async def test_a_disabled_users_keys_stop_together_and_come_back_together(
    house: House, clock: ManualClock
) -> None:
    of_ada = [await house.create(user="ada") for _ in range(2)]
    of_bob = await house.create(user="bob")
    for key in (*of_ada, of_bob):
        await house.store.authenticate(key.api_key.reveal())

    await house.keys.set_user_enabled("ada", enabled=False, actor=ACTOR)
    clock.advance(1.0)

    for key in of_ada:
        with pytest.raises(KeyRevoked, match="user has been disabled") as caught:
            await house.store.authenticate(key.api_key.reveal())
        assert (caught.value.status, caught.value.code) == (401, "key_revoked")
    assert (await house.store.authenticate(of_bob.api_key.reveal())).user == "bob"

    await house.keys.set_user_enabled("ada", enabled=True, actor=ACTOR)
    clock.advance(1.0)

    for key in of_ada:
        assert (await house.store.authenticate(key.api_key.reveal())).key_id == key.record.id


async def test_a_wrong_secret_learns_nothing_of_a_disabled_user(house: House) -> None:
    issued = await house.create()
    await house.keys.set_user_enabled("ada", enabled=False, actor=ACTOR)

    with pytest.raises(Unauthenticated) as caught:
        await house.another_store().authenticate(with_other_secret(issued.api_key))

    assert caught.value.code == "unauthenticated"


async def test_a_tier_that_is_gone_is_our_fault_not_the_callers(clock: ManualClock, tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/keys.db")
    try:
        issued = await registry_of(database, clock).create(actor=ACTOR, user="ada", tier="pro")
        store = SqlKeyStore(database, server_secret=SERVER_SECRET, tiers={"free": TIERS["free"]}, clock=clock)
        with pytest.raises(InternalError):
            await store.authenticate(issued.api_key.reveal())
    finally:
        await database.close()
