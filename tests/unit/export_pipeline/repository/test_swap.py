"""Writers and readers of one folder at once, and everything that is in a writer's way."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from export_pipeline.errors import BadInput, ExportError
from export_pipeline.repository import keep_or_next_version, list_versions, publish_entry, set_default, swap
from export_pipeline.repository.triton_config import selected_versions
from tests.support.repositories import EntryMaker, everything_in, model_sha256, numbers, served


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture
def make(tmp_path: Path) -> EntryMaker:
    return EntryMaker(tmp_path / "jobs")


def test_old_versions_are_links_to_the_same_content(root: Path, make: EntryMaker) -> None:
    publish_entry(root, make(1), new_version=False)
    before = (root / "m/1/model.onnx").stat().st_ino

    publish_entry(root, make(2), new_version=True)

    assert (root / "m/1/model.onnx").stat().st_ino == before


def test_where_there_are_no_links_there_are_copies(
    root: Path, make: EntryMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_entry(root, make(1), new_version=False)
    before = everything_in(root / "m/1")

    def no_links(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(Path, "hardlink_to", no_links)
    publish_entry(root, make(2), new_version=True)

    assert everything_in(root / "m/1") == before
    os.mkfifo(root / "m/pipe")
    with pytest.raises(BadInput, match="pipe is neither a file nor a folder"):
        publish_entry(root, make(3), new_version=True)
    assert numbers(root) == [1, 2]


def test_what_a_killed_writer_left_is_cleared_away_by_the_next(root: Path, make: EntryMaker) -> None:
    leftover = root / ".other.draft-0123456789abcdef"
    (leftover / "1").mkdir(parents=True)
    (leftover / "1/model.onnx").write_bytes(b"half")
    (root / ".git").mkdir()

    publish_entry(root, make(1), new_version=False)

    assert sorted(path.name for path in root.iterdir()) == [".git", swap.LOCK_FILE, "m"]


def test_a_writer_waits_for_the_one_before_it_and_no_longer_than_it_may(root: Path) -> None:
    entered = threading.Event()

    def write() -> None:
        with swap.exclusive(root):
            entered.set()

    with (root / swap.LOCK_FILE).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        writer = threading.Thread(target=write)
        writer.start()
        with pytest.raises(ExportError, match="too long"), swap.exclusive(root, timeout_seconds=0.1):
            pass
        assert not entered.is_set()
    writer.join(timeout=10)
    assert entered.is_set()


@contextmanager
def no_file_longer_than(size_bytes: int) -> Iterator[None]:
    """As a full disk, or a quota, looks to a writer."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("version", [1, 2])
def test_no_room_leaves_nothing_half_written(root: Path, make: EntryMaker, version: int) -> None:
    for earlier in range(1, version):
        publish_entry(root, make(earlier), new_version=False)
    entry = make(version)
    before = everything_in(root)

    with (
        no_file_longer_than(300),
        pytest.raises(ExportError, match=r"no room left for .*models/m") as refusal,
    ):
        publish_entry(root, entry, new_version=True)

    assert refusal.value.exit_code == 1
    assert everything_in(root) == before
    assert {path.name for path in root.iterdir()} <= {swap.LOCK_FILE, "m"}


def test_a_repository_that_may_not_be_written(make: EntryMaker, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"/sys/m may not be written"):
        publish_entry(Path("/sys"), make(1), new_version=False)
    with pytest.raises(BadInput, match="is not a folder"):
        publish_entry(tmp_path / "gone", make(1), new_version=False)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (errno.EINVAL, "cannot exchange two folders"),
        (errno.ENOSYS, "cannot exchange two folders"),
        (errno.EXDEV, "a mount of its own"),
        (errno.EBUSY, "a mount of its own"),
    ],
)
def test_a_file_system_that_cannot_exchange(
    root: Path, make: EntryMaker, monkeypatch: pytest.MonkeyPatch, code: int, says: str
) -> None:
    publish_entry(root, make(1), new_version=False)
    before = everything_in(root)

    class Library:
        def __init__(self, *_: object, **__: object) -> None: ...

        def renameat2(self, *_: object) -> int:
            return -1

    monkeypatch.setattr("ctypes.CDLL", Library)
    monkeypatch.setattr("ctypes.get_errno", lambda: code)
    with pytest.raises(BadInput, match=says):
        publish_entry(root, make(2), new_version=True)
    assert everything_in(root) == before


def test_a_repository_on_another_file_system_is_as_good(make: EntryMaker, tmp_path: Path) -> None:
    """tmpfs, where there is one: copies are made across file systems, never links."""
    root = Path("/dev/shm") / f"{tmp_path.name}-{os.getpid()}"
    root.mkdir()
    try:
        publish_entry(root, make(1), new_version=False)
        publish_entry(root, make(2), new_version=True)
        assert served(root) == (2, (1, 2))
    finally:
        shutil.rmtree(root)


RACER = """
import sys
from pathlib import Path
from export_pipeline.errors import BadInput
from export_pipeline.repository import publish_entry
print("ready", flush=True)
sys.stdin.readline()
try:
    print("published" if publish_entry(Path(sys.argv[1]), Path(sys.argv[2]), new_version=True) else "there")
except BadInput as exc:
    print("taken" if "by another job" in str(exc) else exc)
"""


@pytest.mark.parametrize("first_version", [1, 2])
def test_of_many_jobs_with_one_version_one_is_published(
    root: Path, make: EntryMaker, first_version: int
) -> None:
    """And each of the others in its turn, once it is packaged as the next version."""
    if first_version > 1:
        publish_entry(root, make(1), new_version=False)
    entries = {f"{job}.pt": make(first_version, checkpoint=f"{job}.pt") for job in "abc"}
    racers = {
        job: subprocess.Popen(
            [sys.executable, "-c", RACER, root, entry],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for job, entry in entries.items()
    }
    for racer in racers.values():
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers.values():
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    said = {job: racer.communicate(timeout=60)[0].strip() for job, racer in racers.items()}

    assert sorted(said.values()) == ["published", "taken", "taken"]
    (winner,) = (job for job, word in said.items() if word == "published")
    assert numbers(root) == list(range(1, first_version + 1))
    assert list_versions(root, "m")[-1].sha256 == model_sha256(entries.pop(winner), first_version)
    for job, entry in entries.items():
        version = keep_or_next_version(root, entry, first_version, new_version=True)
        assert publish_entry(root, make(version, checkpoint=job), new_version=True)
    assert numbers(root)[-1] == first_version + 2


WRITER = """
import sys
from pathlib import Path
from export_pipeline.repository import keep_or_next_version, list_versions, publish_entry, set_default
root = Path(sys.argv[1])
for entry in sys.argv[2:]:
    publish_entry(root, Path(entry), new_version=True)
    set_default(root, "m", list_versions(root, "m")[0].version)
"""


def test_a_reader_never_sees_a_mixture(root: Path, make: EntryMaker) -> None:
    """As the gateway and Triton read: the contract, then by path the version that it names."""
    entries = {version: make(version) for version in range(1, 52)}
    known = {model_sha256(entry, version) for version, entry in entries.items()}
    publish_entry(root, entries.pop(1), new_version=False)
    writer = subprocess.Popen([sys.executable, "-c", WRITER, root, *entries.values()])
    seen: set[str] = set()
    reads = replaced = 0
    while writer.poll() is None:
        before = (root / "m").stat()
        try:
            seen.add(consistent_read(root / "m"))
            reads += 1
        except FileNotFoundError:
            # Only a folder that has been replaced since may lose files under a reader.
            now = (root / "m").stat()
            assert (now.st_ino, now.st_ctime_ns) != (before.st_ino, before.st_ctime_ns)
            replaced += 1

    assert writer.returncode == 0
    assert seen <= known
    assert len(seen) > 5
    assert reads > replaced
    assert numbers(root)[-1] == 51


def test_a_new_version_takes_its_place_in_one_step(
    root: Path, make: EntryMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two renames would leave a moment without a model, which a reader has to be lucky to see."""
    publish_entry(root, make(1), new_version=False)
    entry = make(2)

    def no_rename(*_: object) -> None:
        raise AssertionError("renamed in two steps")

    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, no_rename)
    publish_entry(root, entry, new_version=True)
    set_default(root, "m", 1)

    assert served(root) == (1, (1, 2))


def consistent_read(entry: Path) -> str:
    """Through one handle of the folder, whatever has its name by now. Answers the model's hash."""
    folder = os.open(entry, os.O_RDONLY | os.O_DIRECTORY)
    try:
        metadata = json.loads(read_at(folder, "metadata.json"))
        version = metadata["model_info"]["version"]
        model = read_at(folder, f"{version}/model.onnx")
        assert hashlib.sha256(model).hexdigest() == metadata["model_info"]["model_file"]["sha256"]
        assert read_at(folder, f"{version}/metadata.json") == read_at(folder, "metadata.json")
        assert int(version) in selected_versions(read_at(folder, "config.pbtxt").decode())
    finally:
        os.close(folder)
    return hashlib.sha256(model).hexdigest()


def read_at(folder: int, path: str) -> bytes:
    with open(os.open(path, os.O_RDONLY, dir_fd=folder), "rb") as file:  # noqa: PTH123  # a descriptor, no path
        return file.read()


KILLED = """
import os, signal, sys
from pathlib import Path
from export_pipeline import repository
from export_pipeline.repository import swap
real = swap.sync_tree
def killed_before(folder):
    real(folder)
    os.kill(os.getpid(), signal.SIGKILL)
swap.sync_tree = killed_before
repository.publish_entry(Path(sys.argv[1]), Path(sys.argv[2]), new_version=True)
"""


@pytest.mark.parametrize("version", [1, 2])
def test_killed_just_before_it_appears(root: Path, make: EntryMaker, version: int) -> None:
    for earlier in range(1, version):
        publish_entry(root, make(earlier), new_version=False)
    before = everything_in(root)
    entry = make(version)

    killed = subprocess.run([sys.executable, "-c", KILLED, root, entry], check=False, timeout=60)

    assert killed.returncode == -9
    published = {path: sha for path, sha in everything_in(root).items() if not path.startswith(".m.draft-")}
    assert published == before
    assert publish_entry(root, entry, new_version=True)
    assert numbers(root) == list(range(1, version + 1))
    assert {path.name for path in root.iterdir()} == {swap.LOCK_FILE, "m"}
