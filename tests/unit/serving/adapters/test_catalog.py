from __future__ import annotations

import logging
from pathlib import Path

import orjson
import pytest

from serving.adapters.catalog import FolderCatalog
from serving.errors import ModelNotFound
from tests.support.contracts import metadata

CONFIG = "max_batch_size: 8\n"


def add_model(repository: Path, folder: str, *, name: str | None = None, config: str = CONFIG) -> Path:
    (repository / folder).mkdir(parents=True)
    raw = metadata(name or folder, side=64, anchors=3, classes=["cat"])
    (repository / folder / "metadata.json").write_bytes(orjson.dumps(raw))
    (repository / folder / "config.pbtxt").write_text(config)
    return repository / folder


def refusals(caplog: pytest.LogCaptureFixture) -> list[dict[str, str]]:
    return [vars(each)["facts"] for each in caplog.records if each.levelno == logging.WARNING]


def test_without_folders_there_are_no_models(tmp_path: Path) -> None:
    assert FolderCatalog(tmp_path / "absent").names() == []


def test_every_folder_with_a_contract_is_a_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    add_model(tmp_path, "second")
    add_model(tmp_path, "first")
    (tmp_path / "without_a_contract").mkdir()

    catalog = FolderCatalog(tmp_path)

    assert catalog.names() == ["first", "second"]
    assert catalog.get("first").name == "first"
    assert catalog.max_batch_size("first") == 8
    assert refusals(caplog) == []


def test_a_model_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="'absent'"):
        FolderCatalog(tmp_path).get("absent")


def test_a_folder_that_is_refused_is_left_out_and_named_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add_model(tmp_path, "good")
    (add_model(tmp_path, "no_json") / "metadata.json").write_bytes(b"{")
    (add_model(tmp_path, "unreadable") / "metadata.json").unlink()
    (tmp_path / "unreadable" / "metadata.json").mkdir()
    (add_model(tmp_path, "no_config") / "config.pbtxt").unlink()
    add_model(tmp_path, "renamed", name="another")
    add_model(tmp_path, "broken_config", config="max_batch_size: [")
    add_model(tmp_path, "no_batches", config="max_batch_size: 0")

    catalog = FolderCatalog(tmp_path)

    assert catalog.names() == ["good"]
    why = {each["model"]: each["why"] for each in refusals(caplog)}
    assert sorted(why) == ["broken_config", "no_batches", "no_config", "no_json", "renamed", "unreadable"]
    assert "'another'" in why["renamed"]
    assert "max_batch_size" in why["no_batches"]
    assert all(why.values())
