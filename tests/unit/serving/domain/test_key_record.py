from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

import pytest
from pydantic import SecretStr

from serving.adapters.memory.clock import START
from serving.domain.api_key import ApiKey, KeyHasher
from serving.domain.key_record import IssuedKey, authenticated, issue_key
from serving.domain.tenant import Tier
from serving.errors import InternalError, OperatorError, Unauthenticated

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


def test_an_issued_key_proves_its_record() -> None:
    issued = issue()

    assert authenticated(issued.record, issued.api_key, HASHER) is issued.record
    assert issued.record.created_at == START
    assert issued.record.state(START) == "active"


def test_neither_form_of_the_secret_is_ever_printed() -> None:
    issued = issue()

    assert issued.api_key.secret not in repr(issued)
    assert issued.record.key_hash not in repr(issued)


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


def test_no_record_is_answered_like_a_wrong_secret() -> None:
    issued = issue()
    for record in (None, issued.record):
        with pytest.raises(Unauthenticated, match=r"^This API key is unknown\.$"):
            authenticated(record, ApiKey.generate(), HASHER)


def test_a_record_under_another_server_secret_proves_nothing() -> None:
    issued = issue()

    with pytest.raises(Unauthenticated):
        authenticated(issued.record, issued.api_key, KeyHasher(SecretStr("not the secret it was made under")))


def test_a_removed_tier_names_the_key_in_the_log_only() -> None:
    issued = issue()

    with pytest.raises(InternalError) as caught:
        issued.record.principal({}, START)

    assert issued.record.id in str(caught.value.__cause__)
    assert issued.record.id not in caught.value.detail
