"""`visiongate keys` as an operator runs it, on a real SQLite file."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import SecretStr
from typer.testing import CliRunner, Result

from serving.adapters.sql.database import Database
from serving.adapters.sql.key_store import SqlKeyStore
from serving.adapters.tiers import load_tiers
from serving.cli import main
from serving.cli.keys import app, duration, duration_or_none
from serving.clock import SystemClock
from serving.domain.tenant import Principal
from serving.errors import KeyExpired, KeyRevoked, OperatorError
from tests.support.ports import free_ports
from tests.support.redis import running_redis

SERVER_SECRET = "a secret for tests only"


@pytest.fixture(autouse=True)
def database_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "keys.db"
    monkeypatch.setenv("VISIONGATE_RUN_DIRECTORY", str(tmp_path / "run"))
    monkeypatch.setenv("VISIONGATE_DATABASE_URL", f"sqlite:///{path}")
    monkeypatch.setenv("VISIONGATE_KEY_HASH_SECRET", SERVER_SECRET)
    monkeypatch.setenv("VISIONGATE_REDIS_URL", f"redis://127.0.0.1:{free_ports(1)[0]}")  # nobody is there
    return path


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result


def run_json(*arguments: str) -> Any:
    return json.loads(run(*arguments, "--json").stdout)


def authenticate(database_file: Path, api_key: str) -> Principal:
    async def ask() -> Principal:
        database = Database(f"sqlite:///{database_file}")
        store = SqlKeyStore(
            database, server_secret=SecretStr(SERVER_SECRET), tiers=load_tiers(None), clock=SystemClock()
        )
        try:
            return await store.authenticate(api_key)
        finally:
            await store.close()
            await database.close()

    return asyncio.run(ask())


def test_at_first_there_are_no_keys() -> None:
    assert run_json("list") == []
    assert "tier" in run("list").output


def test_a_created_key_opens_the_gateway(database_file: Path) -> None:
    created = run_json("create", "--tier", "pro", "--user", "ada", "--model", "shapes", "--model", "faces")

    principal = authenticate(database_file, created["api_key"])

    assert created == {
        "id": principal.key_id,
        "api_key": created["api_key"],
        "prefix": created["api_key"][:15],
        "user": "ada",
        "tier": "pro",
        "models": ["faces", "shapes"],
        "state": "active",
        "created_at": created["created_at"],
        "expires_at": None,
        "revoked_at": None,
        "last_used_at": None,
        "secrets": [{"prefix": created["prefix"], "created_at": created["created_at"], "expires_at": None}],
    }
    assert principal.models == frozenset({"shapes", "faces"})


def test_without_models_a_key_is_allowed_on_all(database_file: Path) -> None:
    created = run_json("create", "--tier", "free", "--user", "ada")

    assert created["models"] is None
    assert authenticate(database_file, created["api_key"]).models is None


def test_a_lifetime_is_counted_from_now() -> None:
    created = run_json("create", "--tier", "free", "--user", "ada", "--expires-in", "30d")

    left = datetime.fromisoformat(created["expires_at"]) - datetime.now(UTC)
    assert timedelta(days=29, hours=23) < left <= timedelta(days=30)


def test_the_key_is_shown_once_and_whole(database_file: Path) -> None:
    shown = run("create", "--tier", "free", "--user", "[bold]ada").output
    (api_key,) = (line for line in shown.splitlines() if line.startswith("pk_"))

    assert authenticate(database_file, api_key).user == "[bold]ada"
    for listed in (run("list").output, run("list", "--json").output):
        assert "[bold]ada" in listed
        assert api_key.split("_")[2] not in listed


def test_a_revoked_key_is_refused_and_listed_as_such(database_file: Path) -> None:
    created = run_json("create", "--tier", "pro", "--user", "ada")

    revoked = run_json("revoke", created["id"])
    again = run_json("revoke", created["id"])

    assert revoked == again
    assert revoked["state"] == "revoked"
    assert revoked["revoked_at"] is not None
    assert run_json("list") == [revoked]
    assert created["id"] in run("revoke", created["id"]).output
    with pytest.raises(KeyRevoked):
        authenticate(database_file, created["api_key"])


def test_a_rotated_key_opens_with_both_secrets_until_the_overlap_ends(database_file: Path) -> None:
    created = run_json("create", "--tier", "pro", "--user", "ada", "--model", "shapes")

    rotated = run_json("rotate", created["id"], "--overlap", "12h")

    assert rotated["id"] == created["id"]
    assert rotated["api_key"] != created["api_key"]
    for api_key in (created["api_key"], rotated["api_key"]):
        assert authenticate(database_file, api_key).key_id == created["id"]
    earlier, newest = rotated["secrets"]
    overlap = datetime.fromisoformat(earlier["expires_at"]) - datetime.fromisoformat(newest["created_at"])
    assert overlap == timedelta(hours=12)
    assert (newest["prefix"], newest["expires_at"]) == (rotated["api_key"][:15], None)


def test_the_overlap_is_a_day_unless_told_otherwise_and_may_be_none(database_file: Path) -> None:
    created = run_json("create", "--tier", "pro", "--user", "ada")

    by_default = run_json("rotate", created["id"])
    leaked = run_json("rotate", created["id"], "--overlap", "0s")

    begin, end = (
        datetime.fromisoformat(moment)
        for moment in (by_default["secrets"][1]["created_at"], by_default["secrets"][0]["expires_at"])
    )
    assert end - begin == timedelta(hours=24)
    for api_key in (created["api_key"], by_default["api_key"]):
        with pytest.raises(KeyExpired):
            authenticate(database_file, api_key)
    assert authenticate(database_file, leaked["api_key"]).key_id == created["id"]


def test_a_new_secret_is_shown_once_and_whole(database_file: Path) -> None:
    created = run_json("create", "--tier", "free", "--user", "ada")

    shown = run("rotate", created["id"]).stdout
    (api_key,) = (line for line in shown.splitlines() if line.startswith("pk_"))

    assert authenticate(database_file, api_key).key_id == created["id"]
    for listed in (run("list").output, run("list", "--json").output, run("history", "--json").output):
        assert api_key.split("_")[2] not in listed


def test_keys_are_listed_with_what_is_known_of_their_use(database_file: Path) -> None:
    used = run_json("create", "--tier", "free", "--user", "ada")
    unused = run_json("create", "--tier", "pro", "--user", "bob")
    before = datetime.now(UTC).replace(microsecond=0)
    authenticate(database_file, used["api_key"])

    listed = {key["id"]: key for key in run_json("list")}

    assert before <= datetime.fromisoformat(listed[used["id"]]["last_used_at"]) <= datetime.now(UTC)
    assert listed[unused["id"]]["last_used_at"] is None
    assert [key["id"] for key in run_json("list", "--user", "bob")] == [unused["id"]]
    assert run_json("list", "--user", "nobody") == []


def test_a_disabled_users_keys_stop_until_the_user_is_enabled(database_file: Path) -> None:
    created = run_json("create", "--tier", "pro", "--user", "ada")

    assert run_json("disable-user", "ada") == {"user": "ada", "enabled": False, "keys": 1}

    assert run_json("list")[0]["state"] == "disabled"
    with pytest.raises(KeyRevoked):
        authenticate(database_file, created["api_key"])
    assert run("enable-user", "ada").stdout == "ada is enabled; that concerns 1 keys.\n"
    assert authenticate(database_file, created["api_key"]).user == "ada"


def test_history_says_who_did_what(database_file: Path) -> None:
    created = run_json("create", "--tier", "pro", "--user", "ada")
    other = run_json("create", "--tier", "pro", "--user", "bob")
    run("rotate", created["id"])
    run("disable-user", "ada")
    run("revoke", created["id"])

    rows = run_json("history", "--key", created["id"])

    actor = f"cli:{pwd.getpwuid(os.getuid()).pw_name}"
    assert [(row["actor"], row["action"], row["key_id"], row["user"]) for row in rows] == [
        (actor, "created", created["id"], "ada"),
        (actor, "rotated", created["id"], "ada"),
        (actor, "user_disabled", None, "ada"),
        (actor, "revoked", created["id"], "ada"),
    ]
    assert [row["key_id"] for row in run_json("history", "--user", "bob")] == [other["id"]]
    assert run_json("history", "--limit", "1") == rows[-1:]
    assert "user_disabled" in run("history").stdout


def test_what_redis_was_not_told_is_warned_of_where_it_matters() -> None:
    created = run("create", "--tier", "pro", "--user", "ada", "--json")
    key_id = json.loads(created.stdout)["id"]

    changes = [
        run(*arguments, "--json")
        for arguments in (
            ("rotate", key_id),
            ("disable-user", "ada"),
            ("enable-user", "ada"),
            ("revoke", key_id),
        )
    ]

    assert created.stderr == run("list").stderr == run("history").stderr == ""
    for change in changes:
        assert json.loads(change.stdout)
        assert "warning: Redis could not be told" in " ".join(change.stderr.split())


def test_a_change_is_told_to_whoever_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    created = run_json("create", "--tier", "pro", "--user", "ada")
    with running_redis("redis-6.2", tmp_path / "redis") as server:
        monkeypatch.setenv("VISIONGATE_REDIS_URL", server.url.get_secret_value())
        with server.client() as client, client.pubsub() as channel:
            channel.subscribe("vg:key-changes")
            channel.get_message(timeout=10)

            changes = [run("revoke", created["id"]), run("disable-user", "ada")]
            told = [channel.get_message(timeout=10) for _ in changes]

    assert [change.stderr for change in changes] == ["", ""]
    assert [json.loads(message["data"]) for message in told if message] == [
        {"user": "ada", "key_id": created["id"]},
        {"user": "ada", "key_id": None},
    ]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["create", "--tier", "gold", "--user", "ada"], "the tiers are enterprise, free, pro"),
        (["create", "--tier", "pro", "--user", ""], "A user is named"),
        (["create", "--tier", "pro", "--user", "ada", "--model", ""], "A model is named"),
        (["create", "--tier", "pro", "--user", "ada", "--expires-in", "soon"], "no duration"),
        (["create", "--tier", "pro"], "--user"),
        (["revoke", "key_unknown"], "There is no key 'key_unknown'"),
        (["revoke"], "Missing argument"),
        (["rotate", "key_unknown"], "There is no key 'key_unknown'"),
        (["rotate", "key_unknown", "--overlap", "0"], "no duration"),
        (["disable-user", ""], "A user is named"),
        (["history", "--limit", "0"], "greater than or equal to 1"),
    ],
)
def test_bad_input_is_told_and_ends_with_2(
    arguments: list[str], complaint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["visiongate", "keys", *arguments])

    with pytest.raises(SystemExit) as caught:
        main()

    said = " ".join(capsys.readouterr().err.split())
    assert caught.value.code == 2
    assert complaint in said


def make_it_no_database(path: Path) -> None:
    path.write_bytes(b"no database" * 1000)


def make_it_another_schema(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE api_keys (id TEXT)")
    connection.close()


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [(make_it_no_database, "file is not a database"), (make_it_another_schema, "no such column")],
)
def test_database_trouble_is_told_with_its_reason(
    database_file: Path, spoil: Callable[[Path], None], complaint: str
) -> None:
    spoil(database_file)

    result = CliRunner().invoke(app, ["list"])

    assert isinstance(result.exception, OperatorError)
    assert complaint in result.exception.detail


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1), ("90s", 90), ("30m", 1800), ("12h", 43_200), ("30d", 2_592_000), ("2w", 1_209_600)],
)
def test_a_duration_has_one_number_and_one_unit(text: str, seconds: int) -> None:
    assert duration(text) == timedelta(seconds=seconds)


def test_an_overlap_may_be_none_at_all() -> None:
    assert duration_or_none("0s") == timedelta()
    assert duration_or_none("24h") == timedelta(days=1)


@pytest.mark.parametrize(
    "text", ["", "30", "d", "0d", "-1d", "1.5h", "30 d", "1d12h", "30D", "9999999999w", "٣d"]
)
def test_anything_else_is_no_duration(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        duration(text)
