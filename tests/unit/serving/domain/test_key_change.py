from __future__ import annotations

import pytest

from serving.adapters.memory.clock import START
from serving.domain.key_change import ChangedKeys, KeyChange
from serving.domain.key_record import MAX_ACTOR_CHARACTERS, MAX_NAME_CHARACTERS, KeyRecord, KeySecret
from serving.errors import OperatorError


def change(actor: str) -> KeyChange:
    return KeyChange(START, actor, "revoked", "ada", "key_1")


def test_an_actor_may_be_a_user_with_the_longest_name() -> None:
    longest = "user:" + "a" * MAX_NAME_CHARACTERS
    assert change(longest).actor == longest


@pytest.mark.parametrize("actor", ["", "a\0b", "a" * (MAX_ACTOR_CHARACTERS + 1)])
def test_an_actor_that_no_row_would_hold_is_refused(actor: str) -> None:
    with pytest.raises(OperatorError, match="An actor is named"):
        change(actor)


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
