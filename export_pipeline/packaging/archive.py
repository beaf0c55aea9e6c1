"""A zip whose bytes depend on nothing but the names and contents of what is in it, written and read.

Members are stored, not deflated: weights hardly shrink, and zlib's output differs between versions. They
are sorted, of one date and one mode, without extra fields or comments; folders have no members of their own.
So what is read is either such a zip to its last byte, or none: there are no links, no names that appear twice
or lead elsewhere, nothing that swells, and nothing between or behind the members.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import struct
import zlib
from collections.abc import Container, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from export_pipeline.errors import ExportError, writing

MAX_MEMBERS: Final = 1000
MAX_NAME_BYTES: Final = 1000
MAX_KEPT_BYTES: Final = 64 * 1024**2
MAX_ZIP_BYTES: Final = 2**32 - 1
"""What the format's plain form holds; ONNX ends at half of it."""

_CHUNK_BYTES: Final = 1024**2
_VERSION, _UNIX, _UTF8_FLAG, _STORED, _TIME, _FIRST_OF_1980 = 20, 3, 0x800, 0, 0, 0x21
_PLAIN_FILE: Final = 0o100644 << 16
_LOCAL: Final = struct.Struct("<4s5H3L2H")
_CENTRAL: Final = struct.Struct("<4s2B5H3L5H2L")
_END: Final = struct.Struct("<4s4H2LH")
_STEP: Final = re.compile(r"[^/\\:\0]+")


class NotOurZip(Exception):
    """It is no zip, or not as `write_zip` would have written it; `str()` says where it differs."""


@dataclass(frozen=True, slots=True)
class Content:
    """data: of a member that was asked for, else None."""

    sha256: str
    size_bytes: int
    data: bytes | None


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    size_bytes: int
    crc: int
    offset: int

    @property
    def header(self) -> bytes:
        name = self.name.encode()
        kind = (_STORED, _TIME, _FIRST_OF_1980, self.crc, self.size_bytes, self.size_bytes)
        return _LOCAL.pack(b"PK\3\4", _VERSION, _flags(self.name), *kind, len(name), 0) + name

    @property
    def directory_entry(self) -> bytes:
        name = self.name.encode()
        kind = (_STORED, _TIME, _FIRST_OF_1980, self.crc, self.size_bytes, self.size_bytes)
        place = (len(name), 0, 0, 0, 0, _PLAIN_FILE, self.offset)
        return _CENTRAL.pack(b"PK\1\2", _VERSION, _UNIX, _VERSION, _flags(self.name), *kind, *place) + name

    @property
    def end(self) -> int:
        return self.offset + _LOCAL.size + len(self.name.encode()) + self.size_bytes


def write_zip(folder: Path, target: Path) -> None:
    """All files below `folder`, by their paths in it; `target` appears whole or not at all."""
    draft = target.with_name(f".{target.name}.draft")
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    members: list[_Member] = []
    with writing(target):
        with draft.open("wb") as file:
            for name in names:
                member = _measure(folder / name, name, file.tell())
                file.write(member.header)
                with (folder / name).open("rb") as source:
                    shutil.copyfileobj(source, file, _CHUNK_BYTES)
                members.append(member)
            file.write(_directory(members))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)


def read_zip(file: BinaryIO, keep: Container[str]) -> dict[str, Content]:
    """From its first byte to its last, once; contents stay in memory of what `keep` names only.

    Raises NotOurZip for anything that `write_zip` would have written otherwise.
    """
    members: list[_Member] = []
    contents: dict[str, Content] = {}
    signature = file.read(4)
    while signature == b"PK\3\4":
        offset = members[-1].end if members else 0
        member = _read_header(signature + _exactly(file, _LOCAL.size - 4), file, offset)
        _require_next(member, members)
        contents[member.name] = _read_content(file, member, keep=member.name in keep)
        members.append(member)
        signature = file.read(4)
    if not members:
        raise NotOurZip("it is not a zip, or an empty one")
    expected = _directory(members)
    if signature + file.read(len(expected)) != expected:
        raise NotOurZip("its directory is not that of its members")
    return contents


def _measure(path: Path, name: str, offset: int) -> _Member:
    crc, size_bytes = 0, 0
    with path.open("rb") as source:
        while chunk := source.read(_CHUNK_BYTES):
            crc, size_bytes = zlib.crc32(chunk, crc), size_bytes + len(chunk)
    member = _Member(name, size_bytes, crc, offset)
    if member.end > MAX_ZIP_BYTES:
        raise ExportError("A package holds less than 4 GiB, and this one would hold more.")
    return member


def _read_header(header: bytes, file: BinaryIO, offset: int) -> _Member:
    *_, crc, size_bytes, _, name_bytes, _ = _LOCAL.unpack(header)
    if name_bytes > MAX_NAME_BYTES:
        raise NotOurZip("a name is too long")
    encoded = _exactly(file, name_bytes)
    try:
        member = _Member(encoded.decode(), size_bytes, crc, offset)
    except UnicodeDecodeError:
        raise NotOurZip(f"the name {encoded!r} is not UTF-8") from None
    if member.header != header + encoded:
        raise NotOurZip(f"{member.name!r} is not stored as a plain file of no date")
    return member


def _require_next(member: _Member, before: list[_Member]) -> None:
    steps = member.name.split("/")
    if not all(_STEP.fullmatch(step) and step not in {".", ".."} for step in steps):
        raise NotOurZip(f"the name {member.name!r} leads elsewhere")
    if before and member.name <= before[-1].name:
        raise NotOurZip(f"{member.name!r} comes twice, or out of order")
    if len(before) >= MAX_MEMBERS:
        raise NotOurZip(f"it holds more than {MAX_MEMBERS} files")


def _read_content(file: BinaryIO, member: _Member, *, keep: bool) -> Content:
    if keep and member.size_bytes > MAX_KEPT_BYTES:
        raise NotOurZip(f"{member.name!r} is of {member.size_bytes:,} bytes")
    sha256, crc, kept, left = hashlib.sha256(), 0, [], member.size_bytes
    while left:
        chunk = _exactly(file, min(left, _CHUNK_BYTES))
        sha256.update(chunk)
        crc = zlib.crc32(chunk, crc)
        left -= len(chunk)
        if keep:
            kept.append(chunk)
    if crc != member.crc:
        raise NotOurZip(f"{member.name!r} does not have its checksum")
    return Content(sha256.hexdigest(), member.size_bytes, b"".join(kept) if keep else None)


def _directory(members: Iterable[_Member]) -> bytes:
    members = list(members)
    entries = b"".join(member.directory_entry for member in members)
    begin = members[-1].end if members else 0
    return entries + _END.pack(b"PK\5\6", 0, 0, len(members), len(members), len(entries), begin, 0)


def _flags(name: str) -> int:
    return 0 if name.isascii() else _UTF8_FLAG


def _exactly(file: BinaryIO, size_bytes: int) -> bytes:
    data = file.read(size_bytes)
    if len(data) != size_bytes:
        raise NotOurZip("it ends too early")
    return data
