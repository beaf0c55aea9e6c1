"""`visiongate keys` as an operator runs it, on a real SQLite file."""

from __future__ import annotations

import asyncio
import json
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
from serving.cli.keys import app, duration
from serving.clock import SystemClock
from serving.domain.tenant import Principal
from serving.errors import KeyRevoked, OperatorError

SERVER_SECRET = "a secret for tests only"


@pytest.fixture(autouse=True)
def database_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "keys.db"
    monkeypatch.setenv("VISIONGATE_RUN_DIRECTORY", str(tmp_path / "run"))
    monkeypatch.setenv("VISIONGATE_DATABASE_URL", f"sqlite:///{path}")
    monkeypatch.setenv("VISIONGATE_KEY_HASH_SECRET", SERVER_SECRET)
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
        "expires_at": None,
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


@pytest.mark.parametrize(
    "text", ["", "30", "d", "0d", "-1d", "1.5h", "30 d", "1d12h", "30D", "9999999999w", "٣d"]
)
def test_anything_else_is_no_duration(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        duration(text)
