from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from pydantic import SecretStr

from serving.adapters.memory.clock import START
from serving.domain.api_key import ApiKey, KeyHasher
from serving.domain.key_record import (
    EXPIRIES_END,
    IssuedKey,
    KeyRecord,
    KeyState,
    authenticated,
    issue_key,
    rotate_key,
)
from serving.domain.tenant import Principal, Tier
from serving.errors import InternalError, KeyExpired, KeyRevoked, OperatorError, Unauthenticated

HASHER = KeyHasher(SecretStr("a secret for tests only"))
TIERS = {
    name: Tier(name, 60, 10, None, max_pictures_per_request=4, gpu=False) for name in ("pro", "free", "own")
}


def issue(
    *,
    user: str = "ada",
    tier: str = "pro",
    models: Iterable[str] | None = None,
    expires_at: datetime | None = None,
) -> IssuedKey:
    return issue_key(
        user=user, tier=tier, models=models, expires_at=expires_at, tiers=TIERS, hasher=HASHER, now=START
    )


def shown(
    record: KeyRecord | None,
    key: ApiKey,
    *,
    hasher: KeyHasher = HASHER,
    tiers: Mapping[str, Tier] = TIERS,
    now: datetime = START,
) -> Principal:
    return authenticated(record, key, hasher=hasher, tiers=tiers, now=now)


def test_an_issued_key_proves_its_record() -> None:
    issued = issue()

    assert shown(issued.record, issued.api_key) == Principal(
        issued.record.id, "ada", TIERS["pro"], models=None, expires_at=None
    )
    assert issued.record.created_at == START
    assert issued.record.state(START) == "active"


def test_neither_form_of_the_secret_is_ever_printed() -> None:
    issued = issue()

    assert issued.api_key.secret not in repr(issued)
    assert issued.record.secrets[0].key_hash not in repr(issued)


@pytest.mark.parametrize("tier", ["", "gold", "PRO"])
def test_an_unknown_tier_is_answered_with_the_known_ones(tier: str) -> None:
    with pytest.raises(OperatorError, match="the tiers are free, own, pro"):
        issue(tier=tier)


@pytest.mark.parametrize("name", ["", "   ", "new\nline", "\x00", "a" * 201])
def test_a_name_nobody_could_read_is_refused(name: str) -> None:
    with pytest.raises(OperatorError, match="A user is named"):
        issue(user=name)
    with pytest.raises(OperatorError, match="A model is named"):
        issue(models=["shapes", name])


def test_an_empty_list_of_models_is_refused() -> None:
    with pytest.raises(OperatorError, match="at least one model"):
        issue(models=[])


@pytest.mark.parametrize("expires_at", [START, START - timedelta(days=1)])
def test_an_expiry_in_the_past_is_refused(expires_at: datetime) -> None:
    with pytest.raises(OperatorError, match="past"):
        issue(expires_at=expires_at)


def test_an_expiry_without_a_time_zone_is_refused() -> None:
    with pytest.raises(OperatorError, match="time zone"):
        issue(expires_at=START.replace(tzinfo=None))


@pytest.mark.parametrize(
    "expires_at",
    [
        EXPIRIES_END,
        datetime.max.replace(tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone(-timedelta(hours=14))),  # has no time in UTC
    ],
)
def test_an_expiry_near_the_end_of_all_calendars_is_refused(expires_at: datetime) -> None:
    with pytest.raises(OperatorError, match="8999"):
        issue(expires_at=expires_at)


def test_an_expiry_is_kept_in_utc() -> None:
    paris = timezone(timedelta(hours=2))
    last = EXPIRIES_END - timedelta(microseconds=1)

    kept = issue(expires_at=last.astimezone(paris)).record.expires_at

    assert kept == last
    assert kept.tzinfo is UTC


def test_no_record_is_answered_like_a_wrong_secret() -> None:
    issued = issue()
    for record in (None, issued.record):
        with pytest.raises(Unauthenticated, match=r"^This API key is unknown\.$"):
            shown(record, ApiKey.generate())


def test_a_record_under_another_server_secret_proves_nothing() -> None:
    issued = issue()

    with pytest.raises(Unauthenticated):
        shown(issued.record, issued.api_key, hasher=KeyHasher(SecretStr("not the secret it was made under")))


def test_a_removed_tier_names_the_key_in_the_log_only() -> None:
    issued = issue()

    with pytest.raises(InternalError) as caught:
        shown(issued.record, issued.api_key, tiers={})

    assert issued.record.id in str(caught.value.__cause__)
    assert issued.record.id not in caught.value.detail


HOUR = timedelta(hours=1)
MICROSECOND = timedelta(microseconds=1)


@pytest.mark.parametrize(
    ("revoked", "expires_after", "user_disabled", "state"),
    [
        (False, None, False, "active"),
        (False, MICROSECOND, False, "active"),
        (False, timedelta(), False, "expired"),  # at its moment, not after it
        (False, None, True, "disabled"),
        (False, timedelta(), True, "expired"),  # for good, so it outweighs what can be undone
        (True, None, True, "revoked"),
        (True, timedelta(), True, "revoked"),
    ],
)
def test_what_is_for_good_outweighs_what_can_be_undone(
    revoked: bool, expires_after: timedelta | None, user_disabled: bool, state: KeyState
) -> None:
    record = replace(
        issue().record,
        revoked_at=START if revoked else None,
        expires_at=None if expires_after is None else START + expires_after,
        user_disabled=user_disabled,
    )

    assert record.state(START) == state


@pytest.mark.parametrize(
    ("change", "error", "detail"),
    [
        ({"revoked_at": START}, KeyRevoked, "has been revoked"),
        ({"user_disabled": True}, KeyRevoked, "its user has been disabled"),
        ({"expires_at": START}, KeyExpired, "has expired"),
    ],
)
def test_a_key_that_does_not_work_says_why_to_its_holder_alone(
    change: dict[str, object], error: type[Unauthenticated], detail: str
) -> None:
    issued = issue()
    record = replace(issued.record, **change)  # type: ignore[arg-type]  # a table of fields of several types
    other = ApiKey(issued.api_key.prefix, ApiKey.generate().secret)

    with pytest.raises(error, match=detail):
        shown(record, issued.api_key)
    with pytest.raises(Unauthenticated, match=r"^This API key is unknown\.$"):
        shown(record, other)


def test_an_earlier_secret_works_until_its_overlap_ends_to_the_microsecond() -> None:
    issued = issue()
    rotated = rotate_key(issued.record, overlap=HOUR, hasher=HASHER, now=START)

    last = shown(rotated.record, issued.api_key, now=START + HOUR - MICROSECOND)

    assert last.expires_at == START + HOUR
    with pytest.raises(KeyExpired):
        shown(rotated.record, issued.api_key, now=START + HOUR)
    assert shown(rotated.record, rotated.api_key, now=START + HOUR).expires_at is None


def test_a_rotated_key_ends_no_later_than_before() -> None:
    issued = issue(expires_at=START + HOUR)
    rotated = rotate_key(issued.record, overlap=2 * HOUR, hasher=HASHER, now=START)

    for key in (issued.api_key, rotated.api_key):
        assert shown(rotated.record, key).expires_at == START + HOUR
        with pytest.raises(KeyExpired):
            shown(rotated.record, key, now=START + HOUR)


def test_one_secrets_prefix_with_anothers_secret_opens_nothing() -> None:
    issued = issue()
    rotated = rotate_key(issued.record, overlap=HOUR, hasher=HASHER, now=START)

    with pytest.raises(Unauthenticated, match="unknown"):
        shown(rotated.record, ApiKey(issued.api_key.prefix, rotated.api_key.secret))
