from __future__ import annotations

import pytest

from serving.adapters.memory.clock import START
from serving.domain.key_change import ChangedKeys
from serving.domain.key_record import KeyRecord, KeySecret


def record(key_id: str, user: str) -> KeyRecord:
    return KeyRecord(
        key_id, user, "pro", models=None, created_at=START, secrets=(KeySecret("prefix", "hash", START),)
    )


@pytest.mark.parametrize(
    ("keys", "included"),
    [
        (ChangedKeys("ada", "key_1"), {"key_1"}),
        (ChangedKeys("bob", "key_1"), {"key_1"}),  # the id alone decides, whoever is named with it
        (ChangedKeys("ada"), {"key_1", "key_2"}),
        (ChangedKeys("nobody"), set()),
        (ChangedKeys("key_3"), set()),  # a user may be called what he likes
    ],
)
def test_a_change_concerns_one_key_or_all_of_a_user(keys: ChangedKeys, included: set[str]) -> None:
    records = [record("key_1", "ada"), record("key_2", "ada"), record("key_3", "bob")]

    assert {each.id for each in records if keys.include(each)} == included
