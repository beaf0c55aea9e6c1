"""What an isolated process says is read with bounds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from export_pipeline.errors import ExportError
from export_pipeline.executors.output import MAX_LINE_BYTES, Events, Log
from export_pipeline.progress import Event
from export_pipeline.text import printable

WORKING = Event(step="a.b", kind="working", message="half\x1b[2J\ndone", fraction=0.5)


def reading() -> tuple[Events, list[Event]]:
    taken: list[Event] = []
    return Events(["a.b"], taken.append), taken


def test_events_arrive_however_the_bytes_are_cut() -> None:
    events, taken = reading()

    for byte in WORKING.model_dump_json().encode() + b"\n":
        events.feed(bytes([byte]))

    assert taken == [WORKING.model_copy(update={"message": "half [2J done"})]


def test_the_error_is_kept_and_can_drive_no_terminal() -> None:
    events, taken = reading()

    events.feed(b'{"error": "no \\u001b]0;room\\nleft", "limit_exceeded": true}\n')

    assert taken == []
    assert events.sentence == "no  ]0;room\nleft"
    assert events.limit_exceeded


def test_messages_have_a_bound() -> None:
    events, taken = reading()

    events.feed(json.dumps({"step": "a.b", "kind": "working", "message": "x" * 9000}).encode() + b"\n")

    assert len(taken[0].message) == 4000


@pytest.mark.parametrize(
    "line",
    [
        b"no json",
        b"\xff",
        b"[]",
        b"7",
        b"{}",
        b'{"step": "a.b", "kind": "exploded"}',
        b'{"step": "a.b", "kind": "done_before"}',
        b'{"step": "publish.publish", "kind": "done"}',
        b'{"step": "a.b", "kind": "done", "more": 1}',
        b"[" * 60_000,
        b'{"step": "a.b", "kind": "working", "fraction": NaN}',
    ],
)
def test_anything_else_is_refused(line: bytes) -> None:
    events, taken = reading()

    with pytest.raises(ExportError, match="The isolated process"):
        events.feed(line + b"\n")

    assert taken == []


def test_an_endless_line_is_refused() -> None:
    events, _ = reading()
    events.feed(b"x" * MAX_LINE_BYTES)

    with pytest.raises(ExportError, match="an endless line"):
        events.feed(b"x")


def test_the_log_ends_at_its_bound_and_still_knows_what_came_last(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.txt", max_bytes=10)

    for data in (b"one\ntwo\n", b"three\nfour\x1b[2J", b" and more\n", b"unfinished"):
        log.feed(data)
    log.close()

    assert (tmp_path / "log.txt").read_bytes() == b"one\ntwo\nth"
    assert log.last_lines() == "one\ntwo\nthree\nfour [2J and more\nunfinished"


@pytest.mark.parametrize(("before", "kept"), [(b"12345", b"12345new"), (b"123456", b"new")])
def test_a_log_that_is_half_full_begins_anew(before: bytes, kept: bytes, tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_bytes(before)
    log = Log(tmp_path / "log.txt", max_bytes=10)

    log.feed(b"new")
    log.close()

    assert (tmp_path / "log.txt").read_bytes() == kept


def test_the_end_of_endless_output_is_short(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.txt")

    log.feed(b"".join(b"%d%s\n" % (number, b"x" * 1000) for number in range(100)) + b"y" * 1000)
    log.close()

    assert len(log.last_lines()) <= 21 * 301


def test_words_of_every_script_are_printable() -> None:
    assert printable("größer 模型 ✓\n\t\r\x07") == "größer 模型 ✓\n   "
