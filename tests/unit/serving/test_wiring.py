from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import SecretStr

from serving import wiring
from serving.adapters.sql.database import Database
from serving.adapters.triton import TritonBackend
from serving.domain.contract import ModelContract
from serving.errors import OperatorError
from serving.ports import CatalogModel
from serving.settings import Settings
from serving.wiring import _detector_limits, _is_loopback
from tests.support.contracts import classifier_metadata, metadata


async def test_the_end_closes_everything_even_if_one_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []

    async def close_database(_: Database) -> None:
        closed.append("database")

    async def close_backend(_: TritonBackend) -> None:
        raise RuntimeError("does not close")

    monkeypatch.setattr(Database, "close", close_database)
    monkeypatch.setattr(TritonBackend, "close", close_backend)
    monkeypatch.setattr(wiring, "log_to", lambda *_, **__: None)
    monkeypatch.setattr(wiring, "serve_metrics", lambda *_, **__: lambda: closed.append("metrics"))
    settings = Settings(
        run_directory=tmp_path,
        database_url=f"sqlite:///{tmp_path / 'keys.db'}",
        key_hash_secret=SecretStr("a secret that only tests use, long enough"),
        admin_token=SecretStr("a token that only tests use"),
        redis_url=SecretStr(f"unix://{tmp_path}/nobody-listens"),  # so it serves in fallback from the start
        model_repository=tmp_path / "models",
    )
    app = wiring.build(settings)

    with pytest.raises(RuntimeError, match="does not close"):
        async with app.router.lifespan_context(app):
            pass

    assert closed == ["database", "metrics"]


def _model(raw: dict[str, Any]) -> CatalogModel:
    return CatalogModel(ModelContract.parse(orjson.dumps(raw)), 64)


@pytest.mark.parametrize(
    ("raw", "pictures"),
    [
        (metadata("small", side=32, anchors=1, classes=["cat"]), 64),
        (metadata("many_pixels", side=1024, anchors=1, classes=["cat"]), 21),
        (metadata("many_anchors", side=32, anchors=500_000, classes=["cat"]), 6),
        (classifier_metadata("sorter", side=32, classes=["cat"]), 64),
    ],
)
def test_a_batch_and_its_answer_fit_into_a_message(raw: dict[str, Any], pictures: int) -> None:
    assert _detector_limits(Settings(max_batch_size=64), _model(raw)).max_batch_size == pictures


def test_a_model_is_refused_of_which_no_answer_fits_into_a_message() -> None:
    vast = _model(metadata("vast", side=32, anchors=4_000_000, classes=["cat"]))

    with pytest.raises(OperatorError, match="one picture takes 3072 bytes, its answer 80000000, a message"):
        _detector_limits(Settings(), vast)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("", False),
        ("127.0.0.1:8001", True),
        ("127.5.0.1:8001", True),
        ("localhost:8001", True),
        ("[::1]:8001", True),
        ("10.0.0.7:8001", False),
        ("triton.example:8001", False),
        ("localhost.example:8001", False),
        ("dns:///localhost:8001", False),  # any name may be behind it
    ],
)
def test_only_a_loopback_address_is_surely_this_machine(address: str, expected: bool) -> None:
    assert _is_loopback(address) is expected


async def test_a_database_that_a_newer_program_has_changed_stops_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wiring, "log_to", lambda *_, **__: None)
    monkeypatch.setattr(wiring, "serve_metrics", lambda *_, **__: lambda: None)
    with sqlite3.connect(tmp_path / "keys.db") as database:
        database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32))")
        database.execute("INSERT INTO alembic_version VALUES ('9999_of_tomorrow')")
    database.close()
    settings = Settings(
        run_directory=tmp_path,
        database_url=f"sqlite:///{tmp_path / 'keys.db'}",
        key_hash_secret=SecretStr("a secret that only tests use, long enough"),
        admin_token=SecretStr("a token that only tests use"),
        model_repository=tmp_path / "models",
    )
    app = wiring.build(settings, alone=True)

    with pytest.raises(OperatorError, match="newer than this program"):
        async with app.router.lifespan_context(app):
            pytest.fail("it serves")
