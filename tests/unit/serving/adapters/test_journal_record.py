from __future__ import annotations

import zlib
from pathlib import Path

import pytest

from serving.adapters.journal_record import MAX_LINE_BYTES, JournalReader, JournalRecord, from_line, to_line
from serving.domain.idempotency import IdempotencyKey
from serving.domain.inference import RenderedAnswer
from tests.support.usage_events import make_event

PLAIN = JournalRecord(make_event("req_plain", model_version=None, pictures=0))
ANSWERED = JournalRecord(
    make_event("req_answered", user="Ada\n“Lovelace”"),
    idempotency=IdempotencyKey('a "quoted"\nname', "f" * 64),
    answer=RenderedAnswer(b'\x00{"boxes": []}\n\xff', {"content-type": "application/json"}),
)
EVERYTHING = 1 << 40


def read_all(path: Path, *, end_bytes: int | None = None) -> tuple[list[JournalRecord], int]:
    reader = JournalReader(path, end_bytes=end_bytes)
    return reader.read(records=1000, about_bytes=EVERYTHING), reader.damaged_lines


@pytest.mark.parametrize("record", [PLAIN, ANSWERED], ids=["plain", "answered"])
def test_a_line_is_read_as_it_was_written(record: JournalRecord) -> None:
    line = to_line(record)
    assert from_line(line) == record
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")


def test_every_changed_byte_is_noticed() -> None:
    line = to_line(ANSWERED)
    for position in range(len(line) - 1):
        changed = bytearray(line)
        changed[position] ^= 0x01
        if position != 8:  # the space between checksum and text carries nothing
            with pytest.raises(ValueError, match="checksum"):
                from_line(bytes(changed))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{}",
        b'{"event":{},"idempotency":null,"answer":null}',
        b'{"event":{},"idempotency":null,"answer":{"headers":1,"body":"!"}}',
    ],
)
def test_a_line_of_another_form_is_no_record(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"no record|no usage event"):
        from_line(b"%08x %b\n" % (zlib.crc32(text), text))


def test_a_file_that_was_cut_short_at_any_byte_yields_every_whole_line_and_no_damage(tmp_path: Path) -> None:
    lines = [to_line(PLAIN), to_line(ANSWERED), to_line(PLAIN)]
    whole = b"".join(lines)
    path = tmp_path / "cut.journal"
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        expected = [PLAIN, ANSWERED, PLAIN][: whole[:length].count(b"\n")]
        assert read_all(path) == (expected, 0)


@pytest.mark.parametrize(
    ("damage", "damaged_lines"),
    [
        (b"\n", 1),
        (b"rubbish\n", 1),
        (b"\x00" * 4096 + b"\n", 1),
        (to_line(PLAIN)[:-40] + b"\n" + to_line(PLAIN)[40:], 2),
        (b"x" * (MAX_LINE_BYTES + 10) + b"\n", 1),
        (b"x" * MAX_LINE_BYTES + b"\n", 1),
        (b"x" * (MAX_LINE_BYTES - 1) + b"\n", 1),
    ],
    ids=["empty", "rubbish", "zeros", "halves", "too long", "by its end of line", "as long as may be"],
)
def test_damage_in_the_middle_costs_the_lines_it_hit_and_is_counted(
    tmp_path: Path, damage: bytes, damaged_lines: int
) -> None:
    path = tmp_path / "damaged.journal"
    path.write_bytes(to_line(PLAIN) + damage + to_line(ANSWERED))
    assert read_all(path) == ([PLAIN, ANSWERED], damaged_lines)


def test_what_lies_behind_the_acknowledged_end_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "failed.journal"
    path.write_bytes(to_line(PLAIN) + to_line(ANSWERED))
    assert read_all(path, end_bytes=len(to_line(PLAIN))) == ([PLAIN], 0)


def test_it_is_read_in_pieces_by_count_and_by_length(tmp_path: Path) -> None:
    path = tmp_path / "long.journal"
    records = [JournalRecord(make_event(f"req_{number}")) for number in range(10)]
    path.write_bytes(b"".join(map(to_line, records)))
    reader = JournalReader(path)
    by_count = reader.read(records=4, about_bytes=EVERYTHING)
    by_length = reader.read(records=1000, about_bytes=len(to_line(PLAIN)) * 2)
    rest = reader.read(records=1000, about_bytes=EVERYTHING)
    assert len(by_count) == 4
    assert 1 <= len(by_length) <= 3
    assert [*by_count, *by_length, *rest] == records
    assert reader.read(records=1, about_bytes=1) == []
