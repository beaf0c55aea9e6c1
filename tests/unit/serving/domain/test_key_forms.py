"""What is told of a key: the same over HTTP and on the command line, and never what opens it."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta, timezone

from pydantic import SecretStr

from serving.adapters.memory.clock import START
from serving.domain.api_key import KeyHasher
from serving.domain.key_change import AuditRow, revoked
from serving.domain.key_forms import change_form, issued_key_form, key_form
from serving.domain.key_record import issue_key

ISSUED = issue_key(
    user="ada",
    tier="pro",
    models=["shapes", "other"],
    expires_at=START + timedelta(days=1, microseconds=5),
    tiers=["pro"],
    hasher=KeyHasher(SecretStr("a secret for tests only")),
    now=START,
)
START_TEXT = f"{START:%Y-%m-%dT%H:%M:%SZ}"


def test_a_key_is_told_with_its_moments_in_utc() -> None:
    paris = timezone(timedelta(hours=2))
    record = replace(ISSUED.record, last_used_at=START.astimezone(paris))
    prefix = f"pk_{record.prefix}"

    assert json.loads(json.dumps(key_form(record, START))) == {
        "id": record.id,
        "prefix": prefix,
        "user": "ada",
        "tier": "pro",
        "models": ["other", "shapes"],
        "state": "active",
        "created_at": START_TEXT,
        "expires_at": f"{START + timedelta(days=1):%Y-%m-%dT%H:%M:%S}.000005Z",
        "revoked_at": None,
        "last_used_at": START_TEXT,
        "secrets": [{"prefix": prefix, "created_at": START_TEXT, "expires_at": None}],
    }


def test_its_text_is_told_to_whom_it_is_issued_only() -> None:
    form = issued_key_form(ISSUED, START)

    assert form.pop("api_key") == ISSUED.api_key.reveal()
    assert form == key_form(ISSUED.record, START)
    assert ISSUED.record.secrets[0].key_hash not in json.dumps(form)
    assert ISSUED.api_key.secret not in json.dumps(form)


def test_a_change_is_told_with_who_did_it() -> None:
    row = AuditRow(7, revoked(ISSUED.record, actor="cli:ada", at=START))

    assert change_form(row) == {
        "id": 7,
        "at": START_TEXT,
        "actor": "cli:ada",
        "action": "revoked",
        "key_id": ISSUED.record.id,
        "user": "ada",
        "details": {"prefixes": [ISSUED.record.prefix]},
    }
