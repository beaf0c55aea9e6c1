"""Every form of `KeyAdministration` does the same to keys, and writes down the same of it."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone

import pytest

from serving.adapters.memory.clock import START, ManualClock
from serving.domain.key_record import MAX_NAME_CHARACTERS, MAX_OVERLAP, MAX_SECRETS
from serving.errors import KeyExpired, OperatorError, UnknownKey
from tests.support.keys import ACTOR, House


async def test_at_first_there_is_nothing(house: House) -> None:
    assert list(await house.keys.list()) == []
    assert list(await house.keys.history()) == []
    assert await house.keys.get("key_unknown") is None


async def test_keys_are_listed_as_issued_oldest_first(house: House, clock: ManualClock) -> None:
    issued = []
    for user, models in (("ada", None), ("bob", ["shapes", "faces"]), ("ada", ["shapes"])):
        issued.append(
            await house.create(user=user, models=models, expires_at=clock.now() + timedelta(days=30))
        )
        clock.advance(1)

    assert list(await house.keys.list()) == [key.record for key in issued]
    assert list(await house.keys.list(user="ada")) == [issued[0].record, issued[2].record]
    assert list(await house.keys.list(user="nobody")) == []
    assert await house.keys.get(issued[1].record.id) == issued[1].record


@pytest.mark.parametrize(
    ("terms", "complaint"),
    [
        ({"tier": "gold"}, "the tiers are enterprise, free, pro"),
        ({"user": ""}, "A user is named"),
        ({"models": []}, "at least one model"),
        ({"expires_at": START}, "in the past"),
    ],
)
async def test_what_no_key_can_have_is_refused_and_nothing_kept(
    house: House, terms: dict[str, object], complaint: str
) -> None:
    with pytest.raises(OperatorError, match=complaint):
        await house.create(**terms)  # type: ignore[arg-type]  # a table of terms of several types

    assert list(await house.keys.list()) == []
    assert list(await house.keys.history()) == []


@pytest.mark.parametrize("key_id", ["", "key_unknown", "'; DROP TABLE api_keys; --"])
async def test_an_unknown_id_is_named(house: House, key_id: str) -> None:
    with pytest.raises(UnknownKey, match="There is no key"):
        await house.keys.revoke(key_id, actor=ACTOR)
    with pytest.raises(UnknownKey, match="There is no key"):
        await house.keys.rotate(key_id, actor=ACTOR, overlap=timedelta())

    assert list(await house.keys.history()) == []


async def test_revoking_twice_keeps_the_first_moment_and_is_written_down_once(
    house: House, clock: ManualClock
) -> None:
    issued, other = await house.create(), await house.create()
    clock.advance(60)
    first = await house.keys.revoke(issued.record.id, actor=ACTOR)
    clock.advance(60)
    second = await house.keys.revoke(issued.record.id, actor="cli:somebody else")

    assert first == second == await house.keys.get(issued.record.id)
    assert first.revoked_at == START + timedelta(seconds=60)
    assert first.state(clock.now()) == "revoked"
    assert await house.keys.get(other.record.id) == other.record
    assert [row.change.actor for row in await house.keys.history() if row.change.action == "revoked"] == [
        ACTOR
    ]


async def test_rotation_changes_the_secrets_and_nothing_else(house: House, clock: ManualClock) -> None:
    issued = await house.create(models=["shapes"], expires_at=START + timedelta(days=30))
    clock.advance(60)

    rotated = await house.keys.rotate(issued.record.id, actor=ACTOR, overlap=timedelta(hours=24))

    before, after = issued.record, await house.keys.get(issued.record.id)
    assert after == rotated.record
    assert after is not None
    assert (after.id, after.user, after.tier, after.models, after.created_at, after.expires_at) == (
        before.id,
        before.user,
        before.tier,
        before.models,
        before.created_at,
        before.expires_at,
    )
    assert [secret.prefix for secret in after.secrets] == [before.prefix, rotated.api_key.prefix]
    assert [secret.expires_at for secret in after.secrets] == [clock.now() + timedelta(hours=24), None]
    assert after.secrets[1].created_at == clock.now()


async def test_a_second_rotation_never_prolongs_an_earlier_secret(house: House, clock: ManualClock) -> None:
    issued = await house.create()
    await house.keys.rotate(issued.record.id, actor=ACTOR, overlap=timedelta(hours=1))
    clock.advance(60)

    again = await house.keys.rotate(issued.record.id, actor=ACTOR, overlap=timedelta(hours=24))
    at_once = await house.keys.rotate(issued.record.id, actor=ACTOR, overlap=timedelta())

    def ends(times: list[datetime | None]) -> list[float | None]:
        return [None if each is None else (each - START).total_seconds() for each in times]

    assert ends([secret.expires_at for secret in again.record.secrets]) == [3600, 60 + 86_400, None]
    assert ends([secret.expires_at for secret in at_once.record.secrets]) == [60, 60, 60, None]


async def test_a_key_has_so_many_secrets_and_no_more(house: House, clock: ManualClock) -> None:
    keys = [await house.create()]
    key_id = keys[0].record.id
    for _ in range(MAX_SECRETS - 1):
        clock.advance(1)
        keys.append(await house.keys.rotate(key_id, actor=ACTOR, overlap=timedelta(days=1)))

    clock.advance(1)
    with pytest.raises(OperatorError, match="8 secrets that still work"):
        await house.keys.rotate(key_id, actor=ACTOR, overlap=timedelta(days=1))
    newest = await house.keys.rotate(key_id, actor=ACTOR, overlap=timedelta())

    kept = [key.api_key.prefix for key in (*keys, newest)][-MAX_SECRETS:]
    assert {secret.prefix for secret in newest.record.secrets} == set(kept)
    assert await house.keys.get(key_id) == newest.record
    with pytest.raises(KeyExpired):
        await house.another_store().authenticate(keys[-1].api_key.reveal())


async def test_a_revoked_or_expired_key_gets_no_new_secret(house: House, clock: ManualClock) -> None:
    revoked = await house.create()
    await house.keys.revoke(revoked.record.id, actor=ACTOR)
    expired = await house.create(expires_at=clock.now() + timedelta(seconds=1))
    clock.advance(1)

    for issued, state in ((revoked, "revoked"), (expired, "expired")):
        with pytest.raises(OperatorError, match=f"is {state}; create another"):
            await house.keys.rotate(issued.record.id, actor=ACTOR, overlap=timedelta())


@pytest.mark.parametrize("overlap", [timedelta(microseconds=-1), MAX_OVERLAP + timedelta(microseconds=1)])
async def test_an_overlap_has_its_bounds(house: House, overlap: timedelta) -> None:
    issued = await house.create()

    with pytest.raises(OperatorError, match="0 to 365 days"):
        await house.keys.rotate(issued.record.id, actor=ACTOR, overlap=overlap)

    assert await house.keys.get(issued.record.id) == issued.record


async def test_disabling_a_user_counts_the_keys_that_it_stops(house: House, clock: ManualClock) -> None:
    working, _ = await house.create(), await house.create(expires_at=clock.now() + timedelta(seconds=5))
    revoked, of_bob = await house.create(), await house.create(user="bob")
    await house.keys.revoke(revoked.record.id, actor=ACTOR)
    clock.advance(5)

    assert await house.keys.set_user_enabled("ada", enabled=False, actor=ACTOR) == 1

    states = {record.id: record.state(clock.now()) for record in await house.keys.list()}
    assert states[working.record.id] == "disabled"
    assert states[of_bob.record.id] == "active"
    assert sorted(states.values()) == ["active", "disabled", "expired", "revoked"]
    assert await house.keys.set_user_enabled("nobody", enabled=False, actor=ACTOR) == 0


async def test_a_disabled_user_gets_no_new_key_and_a_new_secret_does_not_work_yet(house: House) -> None:
    issued = await house.create()
    await house.keys.set_user_enabled("ada", enabled=False, actor=ACTOR)

    with pytest.raises(OperatorError, match="'ada' is disabled"):
        await house.create()
    rotated = await house.keys.rotate(issued.record.id, actor=ACTOR, overlap=timedelta())

    assert rotated.record.user_disabled
    assert len(await house.keys.list()) == 1


async def test_every_change_is_written_down_once_in_order_with_who_and_what(
    house: House, clock: ManualClock
) -> None:
    expires_at = START + timedelta(days=1)
    issued = await house.create(models=["shapes", "faces"], expires_at=expires_at)
    key_id = issued.record.id
    clock.advance(1)
    rotated = await house.keys.rotate(key_id, actor="api:ada", overlap=timedelta(hours=1))
    clock.advance(1)
    for enabled in (False, False, True, True):
        await house.keys.set_user_enabled("ada", enabled=enabled, actor="api:admin")
    clock.advance(1)
    await house.keys.revoke(key_id, actor=ACTOR)

    rows = await house.keys.history()

    old, new = issued.api_key.prefix, rotated.api_key.prefix
    overlap_ends = START + timedelta(seconds=1, hours=1)
    assert [
        (
            (change.at - START).total_seconds(),
            change.actor,
            change.action,
            change.user,
            change.key_id,
            change.details,
        )
        for change in (row.change for row in rows)
    ] == [
        (
            0,
            ACTOR,
            "created",
            "ada",
            key_id,
            {
                "prefix": old,
                "tier": "pro",
                "models": ["faces", "shapes"],
                "expires_at": expires_at.isoformat(),
            },
        ),
        (
            1,
            "api:ada",
            "rotated",
            "ada",
            key_id,
            {"prefix": new, "secrets_end": {old: overlap_ends.isoformat(), new: None}},
        ),
        (2, "api:admin", "user_disabled", "ada", None, {"keys": 1}),
        (2, "api:admin", "user_enabled", "ada", None, {"keys": 1}),
        (3, ACTOR, "revoked", "ada", key_id, {"prefixes": [old, new]}),
    ]
    ids = [row.id for row in rows]
    assert ids == sorted(set(ids))


async def test_the_audit_table_holds_no_secret(house: House) -> None:
    issued = await house.create()
    rotated = await house.keys.rotate(issued.record.id, actor=ACTOR, overlap=timedelta(hours=1))
    await house.keys.revoke(issued.record.id, actor=ACTOR)

    said = json.dumps([dict(row.change.details) for row in await house.keys.history()])

    for key in (issued, rotated):
        assert key.api_key.prefix in said
        assert key.api_key.secret not in said
    for secret in rotated.record.secrets:
        assert secret.key_hash not in said


async def test_history_is_asked_for_by_key_with_its_user_by_user_and_for_the_latest(house: House) -> None:
    one, other, of_bob = await house.create(), await house.create(), await house.create(user="bob")
    await house.keys.set_user_enabled("ada", enabled=False, actor=ACTOR)
    await house.keys.revoke(of_bob.record.id, actor=ACTOR)

    def seen(rows: object) -> list[tuple[str, str | None]]:
        assert isinstance(rows, list)
        return [(row.change.action, row.change.key_id) for row in rows]

    ada = ("user_disabled", None)
    assert seen(await house.keys.history(key_id=one.record.id)) == [("created", one.record.id), ada]
    assert seen(await house.keys.history(user="ada")) == [
        ("created", one.record.id),
        ("created", other.record.id),
        ada,
    ]
    assert seen(await house.keys.history(user="bob", key_id=one.record.id)) == []
    assert seen(await house.keys.history(key_id="key_unknown")) == []
    assert seen(await house.keys.history(limit=2)) == [ada, ("revoked", of_bob.record.id)]


@pytest.mark.parametrize("actor", ["", "  ", "new\nline", "a" * 241])
async def test_an_actor_that_nobody_could_read_changes_nothing(house: House, actor: str) -> None:
    issued = await house.create()
    for change in (
        house.keys.create(actor=actor, user="ada", tier="pro"),
        house.keys.rotate(issued.record.id, actor=actor, overlap=timedelta()),
        house.keys.revoke(issued.record.id, actor=actor),
    ):
        with pytest.raises(OperatorError, match="An actor is named"):
            await change
    with pytest.raises(OperatorError, match="An actor is named"):
        await house.keys.set_user_enabled("ada", enabled=False, actor=actor)

    assert list(await house.keys.list()) == [issued.record]
    assert len(await house.keys.history()) == 1


async def test_a_user_with_the_longest_name_is_written_down_as_who_did_it(house: House) -> None:
    actor = "user:" + "a" * MAX_NAME_CHARACTERS
    issued = await house.create(user="a" * MAX_NAME_CHARACTERS)

    await house.keys.rotate(issued.record.id, actor=actor, overlap=timedelta())
    await house.keys.revoke(issued.record.id, actor=actor)

    assert [row.change.actor for row in await house.keys.history()][-2:] == [actor, actor]


async def test_an_expiry_that_has_no_time_in_utc_is_refused(house: House) -> None:
    expires_at = datetime.max.replace(tzinfo=timezone(-timedelta(hours=14)))
    with pytest.raises(OperatorError, match="8999"):
        await house.create(expires_at=expires_at)
