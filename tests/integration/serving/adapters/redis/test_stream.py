"""The usage stream on every kind of Redis: handed out once, taken over from the dead, acknowledged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from pydantic import SecretStr

from serving.adapters import usage_codec
from serving.adapters.redis import keyspace
from serving.adapters.redis.client import RedisConnection
from serving.adapters.redis.stream import Handled, RedisUsageStream
from serving.domain.usage import Verdict
from serving.errors import AccountsUnavailable
from tests.support.metering import append, append_later_form, charged, connect
from tests.support.redis import running_redis
from tests.support.usage_events import make_event

KEYS = [f"key_{number}" for number in range(40)]

NewStream = Callable[..., RedisUsageStream]


@pytest.fixture
def new_stream(connection: RedisConnection) -> NewStream:
    """One that takes over what is idle for no time at all, unless told otherwise."""

    def make(consumer: str = "one", *, claim_idle_seconds: float = 0.0, **options: Any) -> RedisUsageStream:
        return RedisUsageStream(
            connection, consumer=consumer, claim_idle_seconds=claim_idle_seconds, **options
        )

    return make


async def append_events(connection: RedisConnection, *request_ids: str, key_id: str = KEYS[0]) -> list[str]:
    return await append(connection, *(make_event(request_id, key_id=key_id) for request_id in request_ids))


async def pictures_charged(connection: RedisConnection, key_id: str = KEYS[0]) -> int:
    return await charged(connection, key_id, make_event().month)


async def pending(connection: RedisConnection, key_id: str = KEYS[0]) -> int:
    stream = keyspace.usage_stream(keyspace.partition_of(key_id))
    return int((await connection.redis.xpending(stream, keyspace.LEDGER_GROUP))["pending"])


def ids_of(entries: object) -> list[str]:
    assert isinstance(entries, list)
    return sorted(entry.event.request_id for entry in entries)


def handled(entries: object, verdict: Verdict = "new") -> list[Handled]:
    assert isinstance(entries, list)
    return [Handled(entry, verdict) for entry in entries]


async def test_an_empty_redis_has_nothing_to_read(new_stream: NewStream) -> None:
    stream = new_stream()

    assert (await stream.read()).entries == []
    assert (await stream.claim()).entries == []
    backlog = await stream.backlog()
    assert (backlog.entries, backlog.lag_seconds, backlog.poison) == (0, 0.0, 0)


async def test_what_is_appended_before_anybody_reads_is_read_whole(
    connection: RedisConnection, new_stream: NewStream
) -> None:
    event = make_event("req_1", key_id=KEYS[3], pictures=7, model_version=None)
    await connection.redis.xadd(
        keyspace.usage_stream(keyspace.partition_of(KEYS[3])), {"e": usage_codec.encode(event)}
    )

    (entry,) = (await new_stream().read()).entries

    assert entry.event == event
    assert entry.partition == keyspace.partition_of(KEYS[3])


async def test_each_entry_of_every_partition_is_handed_to_one_consumer(
    connection: RedisConnection, new_stream: NewStream
) -> None:
    for key_id in KEYS:
        await append_events(connection, f"req_{key_id}", key_id=key_id)
    one, two = new_stream("one"), new_stream("two")

    first, second, third = await one.read(), await two.read(), await one.read()

    assert ids_of(first.entries) == sorted(f"req_{key_id}" for key_id in KEYS)
    assert second.entries == third.entries == []


async def test_no_more_than_the_bound_is_read_of_a_partition(
    connection: RedisConnection, new_stream: NewStream
) -> None:
    await append_events(connection, "a", "b", "c")
    stream = new_stream(entries_per_partition=2)

    assert [ids_of((await stream.read()).entries) for _ in range(3)] == [["a", "b"], ["c"], []]


async def test_what_is_acknowledged_is_gone_and_its_charge_stays(
    connection: RedisConnection, new_stream: NewStream
) -> None:
    await append_events(connection, "a", "b")
    stream = new_stream()

    outcome = await stream.acknowledge(handled((await stream.read()).entries))

    assert (outcome.gone, outcome.unanswered) == ([], [])
    assert (await stream.backlog()).entries == await pending(connection) == 0
    assert await pictures_charged(connection) == 2


@pytest.mark.parametrize("times", [1, 3])
async def test_a_duplicates_charge_is_given_back_once(
    connection: RedisConnection, new_stream: NewStream, times: int
) -> None:
    """However often it is acknowledged: the answer to the first time may have been lost."""
    await append_events(connection, "a", "a")
    stream = new_stream()
    first, second = (await stream.read()).entries
    both = [Handled(first, "new"), Handled(second, "duplicate")]

    outcomes = [await stream.acknowledge(both) for _ in range(times)]

    assert await pictures_charged(connection) == 1
    assert [outcome.gone for outcome in outcomes] == [[], both, both][:times]


async def test_duplicates_of_several_keys_are_told_apart(
    connection: RedisConnection, new_stream: NewStream
) -> None:
    same = [key_id for key_id in KEYS if keyspace.partition_of(key_id) == keyspace.partition_of(KEYS[0])]
    for number, key_id in enumerate(same, start=1):
        await append_events(connection, *[f"req_{key_id}"] * number, key_id=key_id)
    stream = new_stream()
    seen: set[str] = set()
    judged = []
    for entry in (await stream.read()).entries:
        judged.append(Handled(entry, "duplicate" if entry.event.request_id in seen else "new"))
        seen.add(entry.event.request_id)

    await stream.acknowledge(judged)

    assert len(same) > 1
    assert [await pictures_charged(connection, key_id) for key_id in same] == [1] * len(same)


async def test_what_a_dead_consumer_left_is_claimed_by_one_other(
    connection: RedisConnection, new_stream: NewStream
) -> None:
    await append_events(connection, "a", "b")
    await new_stream("dead").read()
    two, three = new_stream("two"), new_stream("three", claim_idle_seconds=60.0)

    claimed = (await two.claim()).entries

    assert ids_of(claimed) == ["a", "b"]
    assert (await three.claim()).entries == []
    await two.acknowledge(handled(claimed))
    assert await pending(connection) == 0


async def test_what_is_not_idle_for_long_is_left_to_who_has_it(
    connection: RedisConnection, new_stream: NewStream
) -> None:
    await append_events(connection, "a")
    await new_stream("slow").read()

    assert (await new_stream("two", claim_idle_seconds=60.0).claim()).entries == []


async def test_a_pending_entry_that_somebody_deleted_is_not_pending_for_ever(
    connection: RedisConnection, new_stream: NewStream
) -> None:
    deleted, _ = await append_events(connection, "a", "b")
    await new_stream("dead").read()
    await connection.redis.xdel(keyspace.usage_stream(keyspace.partition_of(KEYS[0])), deleted)

    claimed = (await new_stream("two").claim()).entries

    assert ids_of(claimed) == ["b"]
    assert await pending(connection) == 1


async def test_after_a_flush_the_group_is_there_again(
    connection: RedisConnection, new_stream: NewStream
) -> None:
    stream = new_stream()
    await append_events(connection, "a")
    before = (await stream.read()).entries
    await connection.redis.flushall()
    await append_events(connection, "b")

    outcome = await stream.acknowledge(handled(before))

    assert [each.entry.event.request_id for each in outcome.gone] == ["a"]
    assert ids_of((await stream.read()).entries) == ["b"]


POISON = {
    "no event": {"x": b"1"},
    "no JSON": {"e": b"\xff"},
    "no event's JSON": {"e": b"{}"},
    "a list": {"e": b"[]"},
    "no form ever": {"e": usage_codec.encode(make_event(key_id=KEYS[0])).replace(b'"form":1', b'"form":0')},
    "text for a number": {
        "e": usage_codec.encode(make_event(key_id=KEYS[0])).replace(b'"pictures":1', b'"pictures":"1"')
    },
    "a negative number": {"e": usage_codec.encode(make_event(key_id=KEYS[0], pictures=-1))},
    "more than SQL can hold": {"e": usage_codec.encode(make_event(key_id=KEYS[0], pixels=2**63))},
    "a NUL, which PostgreSQL refuses": {"e": usage_codec.encode(make_event(key_id=KEYS[0], user="a\0"))},
    "a long text": {"e": usage_codec.encode(make_event(key_id=KEYS[0], user="a" * 256))},
    "None where something has to be": {
        "e": usage_codec.encode(replace(make_event(key_id=KEYS[0]), user=None))  # type: ignore[arg-type]  # on purpose
    },
    "another partition's key": {"e": usage_codec.encode(make_event(key_id=KEYS[1]))},
}


@pytest.mark.parametrize("what", POISON)
async def test_poison_is_set_aside_as_it_came_and_blocks_nobody(
    connection: RedisConnection, new_stream: NewStream, what: str
) -> None:
    partition = keyspace.partition_of(KEYS[0])
    assert partition != keyspace.partition_of(KEYS[1])
    stream = new_stream()
    await append_events(connection, "before")
    poison: Any = POISON[what]
    entry_id = await connection.redis.xadd(keyspace.usage_stream(partition), poison)
    await append_events(connection, "after")

    reading = await stream.read()

    assert ids_of(reading.entries) == ["after", "before"]
    assert reading.set_aside == 1
    redis: Any = connection.redis
    ((_, kept),) = await redis.xrange(keyspace.poison_stream(partition))
    assert kept == {b"entry": entry_id} | {name.encode(): value for name, value in poison.items()}
    backlog = await stream.backlog()
    assert (backlog.entries, backlog.poison) == (2, 1)
    await stream.acknowledge(handled(reading.entries))
    assert await pending(connection) == 0


async def test_poison_of_a_dead_consumer_is_set_aside_too(
    connection: RedisConnection, new_stream: NewStream
) -> None:
    stream = keyspace.usage_stream(keyspace.partition_of(KEYS[0]))
    await connection.redis.xadd(stream, {"e": b"?"})
    await connection.redis.xgroup_create(stream, keyspace.LEDGER_GROUP, "0")
    await connection.redis.xreadgroup(keyspace.LEDGER_GROUP, "dead", {stream: ">"})

    reading = await new_stream().claim()

    assert (reading.entries, reading.set_aside) == ([], 1)
    assert await pending(connection) == 0


async def test_a_later_form_waits_for_who_can_read_it(
    connection: RedisConnection, new_stream: NewStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    await append_events(connection, "before")
    await append_later_form(connection, make_event("later", key_id=KEYS[0]))
    await append_events(connection, "after")
    old = new_stream("old")

    reading = await old.read()
    await old.acknowledge(handled(reading.entries))
    again = await old.claim()
    monkeypatch.setattr(usage_codec, "FORM", 2)
    upgraded = await new_stream("upgraded").claim()

    assert (ids_of(reading.entries), reading.later, reading.set_aside) == (["after", "before"], 1, 0)
    assert (again.entries, again.later, again.set_aside) == ([], 1, 0)
    assert (ids_of(upgraded.entries), upgraded.later) == (["later"], 0)
    backlog = await old.backlog()
    assert (backlog.entries, backlog.poison) == (1, 0)


async def test_what_waits_for_a_newer_version_keeps_nobody_from_what_a_dead_consumer_left(
    connection: RedisConnection, new_stream: NewStream
) -> None:
    """Although it is older, and more than is claimed at a time."""
    await append_later_form(connection, *(make_event(each, key_id=KEYS[0]) for each in "abcde"))
    await append_events(connection, "f")
    await new_stream("dead").read()
    stream = new_stream("two", entries_per_partition=2)

    claims = [await stream.claim() for _ in range(4)]

    assert [(ids_of(claim.entries), claim.later) for claim in claims] == [
        ([], 2),
        ([], 2),
        (["f"], 1),
        ([], 0),
    ]
    await stream.acknowledge(handled(claims[2].entries))
    assert (await stream.claim()).later == 2  # from the oldest again
    assert await pending(connection) == 5


async def test_the_lag_is_the_age_of_the_oldest_entry(
    connection: RedisConnection, new_stream: NewStream
) -> None:
    stream = new_stream()
    await append_events(connection, "young", key_id=KEYS[1])
    now_seconds, _ = await connection.redis.time()
    await connection.redis.xadd(
        keyspace.usage_stream(keyspace.partition_of(KEYS[0])),
        {"e": usage_codec.encode(make_event("old", key_id=KEYS[0]))},
        id=f"{(now_seconds - 100) * 1000}-0",
    )

    backlog = await stream.backlog()

    assert backlog.entries == 2
    assert 100 <= backlog.lag_seconds < 110


async def test_dead_consumers_are_forgotten_unless_they_left_something(
    connection: RedisConnection, url: SecretStr, monkeypatch: pytest.MonkeyPatch, new_stream: NewStream
) -> None:
    monkeypatch.setattr("serving.adapters.redis.stream.FORGET_IDLE_SECONDS", 0.0)
    await append_events(connection, "a")
    with_pending, without = new_stream("with pending"), new_stream("without")
    await with_pending.read()
    await append_events(connection, "b")
    await without.acknowledge(handled((await without.read()).entries))

    await without.forget_dead_consumers()

    stream = keyspace.usage_stream(keyspace.partition_of(KEYS[0]))
    left = await connection.redis.xinfo_consumers(stream, keyspace.LEDGER_GROUP)
    assert [consumer["name"] for consumer in left] == [b"with pending"]
    assert ids_of((await without.claim()).entries) == ["a"]


async def test_nobody_there_is_said(tmp_path_factory: pytest.TempPathFactory) -> None:
    with running_redis("redis-7", tmp_path_factory.mktemp("gone")) as server:
        connection = connect(server.url)
        stream = RedisUsageStream(connection, consumer="one")
        await append_events(connection, "a")
        entries = (await stream.read()).entries
        server.kill()
        mine = handled(entries)

        with pytest.raises(AccountsUnavailable):
            await stream.read()
        with pytest.raises(AccountsUnavailable):
            await stream.backlog()
        outcome = await stream.acknowledge(mine)

        assert (outcome.gone, outcome.unanswered) == ([], mine)
        await connection.close()
