"""Names are what lies in Redis already: they may not change, and one request's share a slot."""

from __future__ import annotations

from collections import Counter

from redis.crc import key_slot

from serving.adapters.redis import keyspace
from serving.domain.idempotency import IdempotencyKey
from serving.domain.month import Month


def test_names_stay_what_they_are() -> None:
    assert keyspace.partition_of("key_a") == 10
    assert keyspace.account("key_a") == "vg:{10}:key:key_a"
    assert keyspace.usage_stream(10) == "vg:{10}:usage"
    assert keyspace.epoch(10) == "vg:{10}:epoch"
    assert keyspace.used_field(Month(2026, 11)) == "used:2026-11"
    assert keyspace.answer("key_a", IdempotencyKey("x", "f")) == (
        "vg:{10}:answer:key_a:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    )


def test_all_of_one_request_is_in_one_slot() -> None:
    for number in range(100):
        key_id = f"key_{{{number}}}"  # whatever is in an id
        partition = keyspace.partition_of(key_id)
        names = (
            keyspace.account(key_id),
            keyspace.answer(key_id, IdempotencyKey("{x}", "f")),
            keyspace.usage_stream(partition),
            keyspace.epoch(partition),
        )

        assert len({key_slot(name.encode()) for name in names}) == 1


def test_keys_spread_over_all_partitions() -> None:
    count = Counter(keyspace.partition_of(f"key_{number}") for number in range(1600))

    assert set(count) == set(range(keyspace.PARTITIONS))
    assert max(count.values()) < 200
