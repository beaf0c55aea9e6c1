"""What is in a model repository at the moment it is looked at, and what is not ready to be served."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import threading
from io import BufferedReader
from pathlib import Path
from typing import Any

import orjson
import pytest

from export_pipeline.repository.swap import exchange
from serving.adapters.catalog import FolderCatalog
from serving.adapters.model_config import read_max_batch_size
from serving.domain.contract import ModelContract
from serving.errors import OperatorError
from tests.support.contracts import metadata

CONFIG = """
max_batch_size: 8
input [{ name: "images" data_type: TYPE_UINT8 dims: [64, 64, 3] }]
output [{ name: "predictions" data_type: TYPE_FP32 dims: [5, 3] }]
"""
MODEL = b"a model that nobody runs here"


def add_model(
    repository: Path, folder: str, *, name: str | None = None, config: str = CONFIG, model: bytes = MODEL
) -> Path:
    """An entry whose contract is about `MODEL`, whatever its file holds."""
    raw = metadata(name or folder.lstrip("."), side=64, anchors=3, classes=["cat"])
    digest = hashlib.sha256(MODEL).hexdigest()
    raw["model_info"]["model_file"] = {"name": "model.onnx", "sha256": digest, "size_bytes": len(MODEL)}
    entry = repository / folder
    (entry / "1").mkdir(parents=True)
    (entry / "1" / "model.onnx").write_bytes(model)
    (entry / "metadata.json").write_bytes(orjson.dumps(raw))
    (entry / "config.pbtxt").write_text(config)
    return entry


@pytest.mark.parametrize("folder", ["absent", "."])
def test_an_empty_or_missing_repository_holds_nothing(tmp_path: Path, folder: str) -> None:
    scan = FolderCatalog(tmp_path / folder).scan()

    assert (scan.models, scan.refused) == ({}, {})


def test_every_folder_with_a_contract_is_a_model(tmp_path: Path) -> None:
    add_model(tmp_path, "second")
    add_model(tmp_path, "first")
    (tmp_path / "without_a_contract").mkdir()
    (tmp_path / "metadata.json").write_text("{}")
    add_model(tmp_path, ".draft")

    scan = FolderCatalog(tmp_path).scan()

    assert list(scan.models) == ["first", "second"]
    assert scan.models["first"].contract.name == "first"
    assert scan.models["first"].max_batch_size == 8
    assert scan.refused == {}


def test_a_folder_that_cannot_be_served_is_refused_with_its_reason(tmp_path: Path) -> None:
    add_model(tmp_path, "good")
    (add_model(tmp_path, "no_json") / "metadata.json").write_bytes(b"{")
    (add_model(tmp_path, "unreadable") / "metadata.json").unlink()
    (tmp_path / "unreadable" / "metadata.json").mkdir()
    (add_model(tmp_path, "no_config") / "config.pbtxt").unlink()
    add_model(tmp_path, "renamed", name="another")
    add_model(tmp_path, "broken_config", config="max_batch_size: [")
    (add_model(tmp_path, "no_model") / "1" / "model.onnx").unlink()
    add_model(tmp_path, "half", model=MODEL[: len(MODEL) // 2])
    add_model(tmp_path, "odd_type", config=CONFIG.replace("TYPE_UINT8", "99"))

    scan = FolderCatalog(tmp_path).scan()

    assert list(scan.models) == ["good"]
    expected = {
        "no_json": "metadata.json",
        "unreadable": "metadata.json cannot be read",
        "no_config": "config.pbtxt cannot be read",
        "renamed": "'another'",
        "broken_config": "config.pbtxt cannot be read",
        "no_model": "model file is not there",
        "half": f"has {len(MODEL) // 2} bytes, not {len(MODEL)}",
        "odd_type": "the input is not the one",
    }
    assert scan.refused.keys() == expected.keys()
    for name, says in expected.items():
        assert says in scan.refused[name]
        assert str(tmp_path) not in scan.refused[name]


def test_a_model_is_found_once_its_file_is_whole(tmp_path: Path) -> None:
    entry = add_model(tmp_path, "cats", model=MODEL[:-1])
    catalog = FolderCatalog(tmp_path)
    assert list(catalog.scan().refused) == ["cats"]

    (entry / "1" / "model.onnx").write_bytes(MODEL)

    assert "being written" in catalog.scan().refused["cats"]
    catalog.verify(catalog.scan().models["cats"])


def test_a_file_of_the_right_size_is_no_model_while_it_is_written(tmp_path: Path) -> None:
    """Writers may reserve the whole of it first."""
    entry = add_model(tmp_path, "cats", model=bytes(len(MODEL)))
    catalog = FolderCatalog(tmp_path)
    with pytest.raises(OperatorError, match="not the one that metadata"):
        catalog.verify(catalog.scan().models["cats"])

    for written in (5, 10, len(MODEL)):
        (entry / "1" / "model.onnx").write_bytes(MODEL[:written].ljust(len(MODEL), b"\0"))
        assert "being written" in catalog.scan().refused["cats"]

    catalog.verify(catalog.scan().models["cats"])


def test_another_file_of_the_same_size_is_not_the_contracts(tmp_path: Path) -> None:
    add_model(tmp_path, "swapped", model=MODEL[::-1])
    catalog = FolderCatalog(tmp_path)

    with pytest.raises(OperatorError, match="not the one that metadata") as caught:
        catalog.verify(catalog.scan().models["swapped"])

    assert str(tmp_path) not in str(caught.value)


def test_who_starts_a_triton_has_every_file_read(tmp_path: Path) -> None:
    add_model(tmp_path, "good")
    add_model(tmp_path, "half", model=MODEL[:-1])
    add_model(tmp_path, "swapped", model=MODEL[::-1])

    scan = FolderCatalog(tmp_path).verified()

    assert (list(scan.models), sorted(scan.refused)) == (["good"], ["half", "swapped"])


def test_a_file_is_hashed_once_and_not_by_looking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = add_model(tmp_path, "cats")
    catalog, hashed = FolderCatalog(tmp_path), []
    digest = hashlib.file_digest

    def counted(file: BufferedReader, name: str) -> Any:
        hashed.append(name)
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    model = catalog.scan().models["cats"]
    assert hashed == []
    catalog.verify(model)
    os.link(entry / "1" / "model.onnx", tmp_path / "another_name")  # changes its ctime
    catalog.verify(catalog.scan().models["cats"])

    assert catalog.scan().models["cats"] is model
    assert hashed == ["sha256"]


def test_a_file_that_changes_under_the_hash_is_not_taken_for_what_was_seen(tmp_path: Path) -> None:
    entry = add_model(tmp_path, "cats")
    catalog = FolderCatalog(tmp_path)
    model = catalog.scan().models["cats"]
    (entry / "1" / "model.onnx").unlink()
    (entry / "1" / "model.onnx").write_bytes(MODEL)
    os.utime(entry / "1" / "model.onnx", ns=(1, 1))

    with pytest.raises(OperatorError, match="being changed"):
        catalog.verify(model)


def test_one_odd_entry_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    add_model(tmp_path, "cats")
    add_model(tmp_path, "odd")

    def odd(config: bytes, contract: ModelContract) -> int:
        if contract.name == "odd":
            raise ValueError("who would have thought")
        return read_max_batch_size(config, contract)

    monkeypatch.setattr("serving.adapters.catalog.read_max_batch_size", odd)
    scan = FolderCatalog(tmp_path).scan()

    assert list(scan.models) == ["cats"]
    assert scan.refused == {"odd": "its files cannot be read"}
    assert "who would have thought" in caplog.text


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize("file", ["metadata.json", "1/model.onnx"])
def test_a_disk_in_trouble_takes_nothing_out_of_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, file: str
) -> None:
    add_model(tmp_path, "cats")
    catalog = FolderCatalog(tmp_path)
    known, stat = catalog.scan(), os.stat

    def troubled(path: Any, **how: Any) -> os.stat_result:
        if path == file:
            raise OSError(number, os.strerror(number))
        return stat(path, **how)

    with monkeypatch.context() as trouble:
        trouble.setattr(os, "stat", troubled)
        assert catalog.scan() == known
        assert "cannot be read" in FolderCatalog(tmp_path).scan().refused["cats"]

    assert catalog.scan() == known


def test_models_come_and_go_while_it_is_looked_at(tmp_path: Path) -> None:
    catalog = FolderCatalog(tmp_path)
    assert not catalog.scan().models

    add_model(tmp_path, ".coming", name="cats").rename(tmp_path / "cats")
    assert list(catalog.scan().models) == ["cats"]

    shutil.rmtree(tmp_path / "cats")
    assert not catalog.scan().models


def test_an_entry_that_takes_anothers_place_is_noticed(tmp_path: Path) -> None:
    """Even one with files of the same size and age."""
    entry = add_model(tmp_path, "cats")
    catalog = FolderCatalog(tmp_path)
    before = catalog.scan().models["cats"]
    other = add_model(tmp_path, ".other", name="cats", config=CONFIG.replace("size: 8", "size: 4"))
    for file in ("metadata.json", "config.pbtxt", "1/model.onnx"):
        age = (entry / file).stat().st_mtime_ns
        os.utime(other / file, ns=(age, age))
    shutil.rmtree(entry)
    other.rename(entry)

    after = catalog.scan().models["cats"]

    assert (before.max_batch_size, after.max_batch_size) == (8, 4)


def test_what_has_not_changed_is_not_read_again(tmp_path: Path) -> None:
    add_model(tmp_path, "cats")
    catalog = FolderCatalog(tmp_path)

    first, second = catalog.scan().models["cats"], catalog.scan().models["cats"]

    assert first is second


def test_an_entry_that_is_exchanged_all_the_time_is_never_missed(tmp_path: Path) -> None:
    add_model(tmp_path, "cats")
    catalog, done = FolderCatalog(tmp_path), threading.Event()
    published: list[bool] = []

    def publish() -> None:
        try:
            for _ in range(150):
                draft = tmp_path / ".cats.draft"
                shutil.copytree(tmp_path / "cats", draft)
                exchange(draft, tmp_path / "cats")
                shutil.rmtree(draft)
            published.append(True)
        finally:
            done.set()

    publisher = threading.Thread(target=publish, daemon=True)
    publisher.start()
    scans = [catalog.scan()]
    while not done.is_set():
        scans.append(catalog.scan())
    publisher.join()

    assert published
    assert [scan.refused for scan in scans if "cats" not in scan.models] == []


@pytest.mark.parametrize("known", [True, False])
def test_without_descriptors_nothing_is_taken_for_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    add_model(tmp_path, "cats")
    catalog = FolderCatalog(tmp_path)
    before = catalog.scan() if known else None

    def none_left(*_: Any, **__: Any) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as trouble:
        trouble.setattr(os, "open", none_left)
        found = catalog.scan()

    if known:
        assert found == before
    else:
        assert found.refused == {"cats": "its folder cannot be read: Too many open files"}
    assert list(catalog.scan().models) == ["cats"]


def test_a_repository_that_went_away_is_an_error(tmp_path: Path) -> None:
    add_model(tmp_path / "models", "cats")
    catalog = FolderCatalog(tmp_path / "models")
    catalog.scan()
    shutil.rmtree(tmp_path / "models")

    with pytest.raises(OperatorError, match="cannot be listed"):
        catalog.scan()


@pytest.mark.timeout(10)
def test_a_pipe_in_place_of_a_file_holds_nothing_up(tmp_path: Path) -> None:
    entry = add_model(tmp_path, "cats")
    (entry / "metadata.json").unlink()
    os.mkfifo(entry / "metadata.json")

    assert "not a file" in FolderCatalog(tmp_path).scan().refused["cats"]


def test_another_config_is_another_model(tmp_path: Path) -> None:
    entry = add_model(tmp_path, "cats")
    catalog = FolderCatalog(tmp_path)
    before = catalog.scan().models["cats"]
    with (entry / "config.pbtxt").open("a") as config:
        config.write("instance_group [{ count: 2 kind: KIND_CPU }]\n")

    assert catalog.scan().models["cats"] != before
