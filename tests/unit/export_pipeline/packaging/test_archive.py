"""The zip that is the same zip every time, and the reader that takes no other."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from export_pipeline.errors import BadInput, ExportError
from export_pipeline.packaging import archive
from export_pipeline.packaging.archive import NotOurZip, read_zip, write_zip

FILES = {
    "model.onnx": b"weights" * 1000,
    "README.md": b"",
    "runtimes/python/example.py": b"print()\n",
    "a name with spaces": b"\0",
    "zweite Größe.txt": "Größe\n".encode(),
}
OTHERWISE = """
import os, sys, time
from pathlib import Path
from export_pipeline.packaging.archive import write_zip
write_zip(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def fill(folder: Path) -> Path:
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return fill(tmp_path / "package")


@pytest.fixture
def zipped(package: Path, tmp_path: Path) -> bytes:
    write_zip(package, tmp_path / "package.zip")
    return (tmp_path / "package.zip").read_bytes()


def read(content: bytes) -> dict[str, archive.Content]:
    return read_zip(io.BytesIO(content), FILES)


def test_everybody_can_unpack_it(zipped: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(zipped)) as opened:
        assert opened.testzip() is None
        assert opened.namelist() == sorted(FILES)
        assert {name: opened.read(name) for name in opened.namelist()} == FILES
        assert {member.date_time for member in opened.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {member.external_attr >> 16 for member in opened.infolist()} == {0o100644}
        assert {member.compress_type for member in opened.infolist()} == {zipfile.ZIP_STORED}
        assert not any(member.extra or member.comment for member in opened.infolist())


def test_what_is_written_is_read_back(zipped: bytes) -> None:
    contents = read(zipped)

    assert {name: content.data for name, content in contents.items()} == FILES
    assert {name: content.sha256 for name, content in contents.items()} == {
        name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()
    }
    kept = read_zip(io.BytesIO(zipped), {"README.md"})
    assert {name for name, content in kept.items() if content.data is not None} == {"README.md"}


def test_the_same_inputs_give_the_same_bytes(zipped: bytes, tmp_path: Path) -> None:
    """Whatever the folder, its times and modes, the order of its making, the umask, the locale, the zone."""
    elsewhere = tmp_path / "else where"
    for name in reversed(FILES):
        (elsewhere / name).parent.mkdir(parents=True, exist_ok=True)
        (elsewhere / name).write_bytes(FILES[name])
        os.utime(elsewhere / name, (time.time(), 1e9))
        (elsewhere / name).chmod(0o700)
    (elsewhere / "empty folder").mkdir()
    target = tmp_path / "other.zip"

    subprocess.run(
        [sys.executable, "-c", OTHERWISE, elsewhere, target],
        env={**os.environ, "LC_ALL": "C", "TZ": "Asia/Kolkata", "PYTHONHASHSEED": "7"},
        umask=0o077,
        check=True,
        timeout=60,
    )

    assert target.read_bytes() == zipped


def test_another_content_or_name_gives_other_bytes(package: Path, zipped: bytes, tmp_path: Path) -> None:
    (package / "README.md").rename(package / "README.txt")

    write_zip(package, tmp_path / "other.zip")

    assert (tmp_path / "other.zip").read_bytes() != zipped


def test_no_byte_of_it_can_be_another(zipped: bytes) -> None:
    """But for the weights, whose every hundredth is tried."""
    begin = zipped.index(b"weights")
    end = begin + len(FILES["model.onnx"])
    places = [at for at in range(len(zipped)) if not begin <= at < end or at % 100 == 0]
    for at in places:
        with pytest.raises(NotOurZip):
            read(zipped[:at] + bytes([zipped[at] ^ 1]) + zipped[at + 1 :])


def test_no_byte_of_it_can_be_missing_or_added(zipped: bytes) -> None:
    for length in [*range(500), *range(len(zipped) - 500, len(zipped))]:
        with pytest.raises(NotOurZip):
            read(zipped[:length])
    for longer in (zipped + b"\0", b"\0" + zipped, zipped + zipped):
        with pytest.raises(NotOurZip):
            read(longer)


def by_zipfile(fill_it: Callable[[zipfile.ZipFile], object]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as written:
        fill_it(written)
    return buffer.getvalue()


def ours(*names: str, size: int = 1) -> bytes:
    """As `write_zip` would write members of these names, were it asked to."""
    members: list[archive._Member] = []
    written = b""
    for name in names:
        member = archive._Member(name, size, zlib.crc32(b"x" * size), len(written))
        written += member.header + b"x" * size
        members.append(member)
    return written + archive._directory(members)


def link() -> zipfile.ZipInfo:
    member = zipfile.ZipInfo("link")
    member.external_attr = 0o120777 << 16
    return member


@pytest.mark.parametrize(
    ("hostile", "says"),
    [
        (b"", "not a zip"),
        (b"no zip at all", "not a zip"),
        (by_zipfile(lambda _: None), "not a zip, or an empty one"),
        (ours("../escape"), "leads elsewhere"),
        (ours("/etc/passwd"), "leads elsewhere"),
        (ours("a//b"), "leads elsewhere"),
        (ours("a/./b"), "leads elsewhere"),
        (ours("a\\..\\b"), "leads elsewhere"),
        (ours("C:model.onnx"), "leads elsewhere"),
        (ours("nul\0"), "leads elsewhere"),
        (ours("folder/"), "leads elsewhere"),
        (ours(""), "leads elsewhere"),
        (ours("twice", "twice"), "comes twice"),
        (ours("b", "a"), "out of order"),
        (ours(*(f"{number:04}" for number in range(1001))), "more than 1000 files"),
        (ours("n" * 1001), "too long"),
        (by_zipfile(lambda zipped: zipped.writestr(link(), "/etc/passwd")), "plain file|directory"),
        (
            by_zipfile(lambda zipped: zipped.writestr("bomb", b"\0" * 10**6, zipfile.ZIP_DEFLATED)),
            "plain file",
        ),
        (by_zipfile(lambda zipped: zipped.writestr("dated", b"x")), "plain file of no date"),
        (ours("a").replace(b"PK\1\2", b"PK\1\3"), "directory"),
        (struct.pack("<4s", b"PK\3\4") + b"\xff" * 26, "too long|plain file"),
    ],
)
def test_hostile_zips_are_refused(hostile: bytes, says: str) -> None:
    with pytest.raises(NotOurZip, match=says):
        read(hostile)


def test_a_file_that_would_fill_the_memory_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_KEPT_BYTES", 10)

    assert read_zip(io.BytesIO(ours("large", size=11)), ())["large"].size_bytes == 11
    with pytest.raises(NotOurZip, match="of 11 bytes"):
        read_zip(io.BytesIO(ours("large", size=11)), {"large"})


def test_what_does_not_fit_into_a_plain_zip(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MAX_ZIP_BYTES", 5000)

    with pytest.raises(ExportError, match="less than 4 GiB"):
        write_zip(package, tmp_path / "package.zip")
    assert not (tmp_path / "package.zip").exists()


def test_a_folder_that_may_not_be_written(package: Path) -> None:
    with pytest.raises(BadInput, match="may not be written"):
        write_zip(package, Path("/sys/package.zip"))
