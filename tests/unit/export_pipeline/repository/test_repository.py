"""The rules of the model repository: which version is allotted, published, kept, and served."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from export_pipeline import repository
from export_pipeline.errors import BadInput
from export_pipeline.repository import (
    keep_or_next_version,
    list_versions,
    next_version,
    publish_entry,
    set_default,
)
from export_pipeline.repository.swap import LOCK_FILE
from tests.support.export_jobs import Kind
from tests.support.repositories import EntryMaker, everything_in, numbers, served

Publish = Callable[..., Path]
"""`publish(version, kind)`: makes an entry, puts it into the repository, and answers where it was made."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture
def make(tmp_path: Path) -> EntryMaker:
    return EntryMaker(tmp_path / "jobs")


@pytest.fixture
def publish(root: Path, make: EntryMaker) -> Callable[..., Path]:
    def publish_version(version: int, kind: Kind | str = "raw") -> Path:
        entry = make(version, kind)
        assert publish_entry(root, entry, new_version=version > 1)
        return entry

    return publish_version


def test_a_new_model_appears_as_it_was_made(root: Path, make: EntryMaker) -> None:
    entry = make(1)

    assert next_version(root, "m", new_version=False) == 1
    assert publish_entry(root, entry, new_version=False)

    assert everything_in(root / "m") == everything_in(entry)
    assert served(root) == (1, (1,))
    (version,) = list_versions(root, "m")
    assert version.passed
    assert version.sha256 == hashlib.sha256((entry / "1/model.onnx").read_bytes()).hexdigest()
    assert version.published_at == (root / "m/1/metadata.json").stat().st_mtime


def test_publishing_twice_is_publishing_once(root: Path, make: EntryMaker) -> None:
    first, second = make(1), make(2)
    publish_entry(root, first, new_version=False)
    publish_entry(root, second, new_version=True)
    before, identity = everything_in(root), (root / "m").stat().st_ino

    assert not publish_entry(root, second, new_version=True)
    assert not publish_entry(root, first, new_version=False)

    assert everything_in(root) == before
    assert (root / "m").stat().st_ino == identity
    assert served(root) == (2, (1, 2))


def test_versions_count_up_and_the_one_before_stays_loaded(root: Path, publish: Publish) -> None:
    for version in (1, 2, 3):
        publish(version)
        assert next_version(root, "m", new_version=True) == version + 1

    assert numbers(root) == [1, 2, 3]
    assert served(root) == (3, (2, 3))


@pytest.mark.parametrize("kind", ["end_to_end", "half", "fixed"])
def test_one_with_other_tensors_is_loaded_alone(root: Path, publish: Publish, kind: str) -> None:
    publish(1)
    publish(2, kind)

    assert served(root) == (2, (2,))


def test_whatever_else_lies_there_is_carried_along(root: Path, publish: Publish) -> None:
    publish(1)
    entry = root / "m"
    (entry / "README.md").write_text("mine")
    (entry / "pictures").mkdir()
    (entry / "pictures/sample.jpg").write_bytes(b"jpeg")
    (entry / "link").symlink_to("pictures/sample.jpg")
    (entry / "77").mkdir()
    entry.chmod(0o750)

    publish(78)
    set_default(root, "m", 1)

    assert (entry / "README.md").read_text() == "mine"
    assert (entry / "link").readlink() == Path("pictures/sample.jpg")
    assert (entry / "link").read_bytes() == b"jpeg"
    assert (entry / "77").is_dir()
    assert entry.stat().st_mode & 0o777 == 0o750
    assert numbers(root) == [1, 78]


def test_old_versions_are_kept_to_a_limit(root: Path, publish: Publish) -> None:
    for version in range(1, 8):
        publish(version)

    assert repository.KEPT_VERSIONS == 5
    assert numbers(root) == [3, 4, 5, 6, 7]
    assert not (root / "m/2").exists()


def test_neither_the_default_nor_the_one_beside_it_goes(root: Path, publish: Publish) -> None:
    for version in range(1, 6):
        publish(version)
    set_default(root, "m", 1)

    publish(6)

    assert served(root) == (6, (1, 6))
    assert numbers(root) == [1, 3, 4, 5, 6]


def test_the_last_default_stays_although_its_tensors_are_others(
    root: Path, make: EntryMaker, publish: Publish
) -> None:
    publish(1)
    publish(2)

    publish_entry(root, make(3, "end_to_end"), new_version=True, kept_versions=1)

    assert served(root) == (3, (3,))
    assert numbers(root) == [2, 3]


def test_another_default(root: Path, publish: Publish) -> None:
    first = publish(1)
    publish(2)
    publish(3)

    set_default(root, "m", 1)

    assert served(root) == (1, (1, 3))
    assert (root / "m/metadata.json").read_bytes() == (first / "metadata.json").read_bytes()
    assert numbers(root) == [1, 2, 3]
    before = everything_in(root)
    set_default(root, "m", 1)
    assert everything_in(root) == before


def test_a_default_that_cannot_be(root: Path, publish: Publish) -> None:
    publish(1)
    publish(2)
    publish(3)
    (root / "m/1/model.onnx").write_bytes(b"another")
    (root / "m/2/validation.json").write_bytes(b"{}")
    before = everything_in(root)

    for version, says in (
        (4, "no version 4; it has 1, 2, 3"),
        (1, "model.onnx is not the file"),
        (2, "validation.json is not the file"),
    ):
        with pytest.raises(BadInput, match=says):
            set_default(root, "m", version)
    with pytest.raises(BadInput, match="does not exist"):
        set_default(root, "other", 1)
    with pytest.raises(BadInput, match="not a model's name"):
        set_default(root, "../models/m", 1)
    assert everything_in(root) == before


def test_an_entry_that_was_made_by_hand_is_taken_over(root: Path, publish: Publish) -> None:
    """As the sample once was: contract and config on top, nothing but the model in its version's folder."""
    publish(1)
    top = {name: (root / "m" / name).read_bytes() for name in ("metadata.json", "config.pbtxt")}
    for name in (*top, "validation.json"):
        (root / "m/1" / name).unlink()
    assert [each.passed for each in list_versions(root, "m")] == [True]

    publish(2)

    assert served(root) == (2, (1, 2))
    assert {name: (root / "m/1" / name).read_bytes() for name in top} == top
    with pytest.raises(BadInput, match=r"validation\.json"):
        set_default(root, "m", 1)


@pytest.mark.parametrize(
    "obstacle",
    [
        lambda path: path.mkdir(),
        lambda path: path.write_text("a file"),
        lambda path: path.symlink_to("elsewhere"),
        lambda path: (path.mkdir(), (path / "metadata.json").write_text("{}")),
        lambda path: (path.mkdir(), (path / "config.pbtxt").write_text('name: "m"')),
    ],
    ids=["empty", "file", "dangling link", "no contract", "by hand"],
)
@pytest.mark.parametrize("new_version", [False, True])
def test_what_is_no_entry_of_ours_is_left_alone(
    root: Path, make: EntryMaker, obstacle: Callable[[Path], object], new_version: bool
) -> None:
    obstacle(root / "m")
    before = sorted(root.rglob("*"))

    with pytest.raises(BadInput, match=r"m is (not a model of this pipeline|a symbolic link)"):
        publish_entry(root, make(1), new_version=new_version)
    with pytest.raises(BadInput):
        next_version(root, "m", new_version=new_version)
    assert [path for path in sorted(root.rglob("*")) if path.name != LOCK_FILE] == before


def test_a_folder_of_many_digits_is_no_version(root: Path, make: EntryMaker) -> None:
    publish_entry(root, make(1), new_version=False)
    (root / "m" / ("9" * 200)).mkdir()

    assert next_version(root, "m", new_version=True) == 2


def test_a_link_to_an_entry_is_not_replaced(root: Path, make: EntryMaker, tmp_path: Path) -> None:
    publish_entry(tmp_path, make(1), new_version=False)
    (root / "m").symlink_to(tmp_path / "m")

    with pytest.raises(BadInput, match="symbolic link"):
        publish_entry(root, make(2), new_version=True)
    assert numbers(tmp_path) == [1]


def test_a_name_that_is_taken(root: Path, make: EntryMaker, publish: Publish) -> None:
    publish(1)
    before = everything_in(root)

    for version in (1, 2):
        with pytest.raises(BadInput, match="name m is taken"):
            publish_entry(root, make(version, checkpoint="another.pt"), new_version=False)
    with pytest.raises(BadInput, match="name m is taken"):
        next_version(root, "m", new_version=False)
    assert everything_in(root) == before


def test_a_model_does_not_change_its_task(root: Path, make: EntryMaker, publish: Publish) -> None:
    publish(1)

    with pytest.raises(BadInput, match="for detection, and cannot become one for classification"):
        publish_entry(root, make(2, "classification"), new_version=True)
    with pytest.raises(BadInput, match="cannot become one for segmentation"):
        next_version(root, "m", new_version=True, task_type="segmentation")
    assert numbers(root) == [1]


@pytest.mark.parametrize("version", [1, 2])
def test_a_version_that_another_job_has_taken_meanwhile(
    root: Path, make: EntryMaker, publish: Publish, version: int
) -> None:
    publish(1)
    publish(2)
    mine = make(version, checkpoint="mine.pt")

    with pytest.raises(BadInput, match=f"Version {version} of m .* --from package.* as version 3"):
        publish_entry(root, mine, new_version=True)

    assert keep_or_next_version(root, mine, version, new_version=True) == 3
    with pytest.raises(BadInput, match="name m is taken"):
        keep_or_next_version(root, mine, version, new_version=False)


def test_a_job_that_is_packaged_again_keeps_the_version_that_is_its_own(
    root: Path, make: EntryMaker, publish: Publish
) -> None:
    first = make(1)
    assert keep_or_next_version(root, first, 1, new_version=False) == 1
    publish_entry(root, first, new_version=False)
    publish(2)

    assert keep_or_next_version(root, first, 1, new_version=False) == 1
    assert keep_or_next_version(root, make(3), 3, new_version=True) == 3
    assert keep_or_next_version(root, first.parent / "gone" / "m", 1, new_version=True) == 3


def test_nothing_is_published_without_a_certificate(root: Path, make: EntryMaker) -> None:
    with pytest.raises(BadInput, match="no certificate"):
        publish_entry(root, make(1, certified=False), new_version=False)
    damaged = make(1)
    (damaged / "1/model.onnx").write_bytes(b"another")
    with pytest.raises(BadInput, match="is not the file"):
        publish_entry(root, damaged, new_version=False)
    assert list(root.iterdir()) == []
