"""Settings: one class, read from the environment, complete after loading, never showing a secret."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from serving.errors import OperatorError
from serving.settings import KEPT_SECRETS, Settings, load_settings


@pytest.fixture(autouse=True)
def _clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISIONGATE_RUN_DIRECTORY", str(tmp_path / "run"))


def test_every_setting_has_a_default_and_a_description() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []
    assert [name for name, field in Settings.model_fields.items() if field.is_required()] == []


def test_the_environment_sets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISIONGATE_PORT", "1234")
    assert load_settings().port == 1234


@pytest.mark.parametrize(
    ("name", "value"),
    [("PORT", "0"), ("PORT", "http"), ("MAX_BATCH_SIZE", "0"), ("REQUEST_TIMEOUT_SECONDS", "nan")],
)
def test_a_value_that_does_not_fit_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"VISIONGATE_{name}", value)
    with pytest.raises(OperatorError, match=f"VISIONGATE_{name}: "):
        load_settings()


def test_secrets_are_made_once_kept_for_the_owner_and_not_shown(tmp_path: Path) -> None:
    first, second = load_settings(), load_settings()

    for name in KEPT_SECRETS:
        secret = getattr(first, name).get_secret_value()
        assert len(secret) >= 32
        assert getattr(second, name).get_secret_value() == secret
        assert secret not in repr(first)
    assert stat.S_IMODE((tmp_path / "run" / "secrets.json").stat().st_mode) == 0o600
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["secrets.json"]


def test_a_secret_from_the_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISIONGATE_ADMIN_TOKEN", "mine")
    assert load_settings().admin_token.get_secret_value() == "mine"


def test_keys_lie_in_the_run_directory_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_settings().database_url == f"sqlite:///{tmp_path / 'run' / 'visiongate.db'}"
    monkeypatch.setenv("VISIONGATE_DATABASE_URL", "postgresql://db/keys")
    assert load_settings().database_url == "postgresql://db/keys"


def test_paths_are_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VISIONGATE_MODEL_REPOSITORY", "models")
    assert load_settings().model_repository == tmp_path / "models"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("MAX_DECODED_PIXELS", "10", "max_picture_pixels must not exceed"),
        ("MAX_BODIES_BYTES", "10", "max_body_bytes must not exceed"),
        ("PORT", "8010", "port 8010 is given to more than one: port, triton_http_port"),
    ],
)
def test_settings_that_contradict_each_other(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    monkeypatch.setenv(f"VISIONGATE_{name}", value)
    with pytest.raises(OperatorError, match=says):
        load_settings()


@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_a_secrets_file_that_holds_none_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "secrets.json").write_text(text)
    with pytest.raises(OperatorError, match="restore or remove it"):
        load_settings()
