"""What a journal holds: one settled request a line, with a checksum, as text that a person can read too.

::

    5f1c09ae {"event":{"form":1,"request_id":…},"idempotency":["…","…"],"answer":{…}}⏎
    └ CRC-32 of what follows the space

A line that a crash cut short has no end of line. It is the last one, and nobody was told that it was written.
"""

from __future__ import annotations

import binascii
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import orjson

from serving.adapters import usage_codec
from serving.domain.idempotency import IdempotencyKey
from serving.domain.inference import RenderedAnswer
from serving.domain.usage import UsageEvent

MAX_LINE_BYTES = 32 << 20
"""A longer one is refused when it is written, and is damage where it is read."""
_CHECKSUM_CHARACTERS = 8


@dataclass(frozen=True, slots=True)
class JournalRecord:
    """All that it takes to settle a request later, by whatever process.

    answer: kept only where an idempotency key may ask for it again.
    """

    event: UsageEvent
    idempotency: IdempotencyKey | None = None
    answer: RenderedAnswer | None = None


def to_line(record: JournalRecord) -> bytes:
    key, answer = record.idempotency, record.answer
    text = orjson.dumps(
        {
            "event": orjson.Fragment(usage_codec.encode(record.event)),
            "idempotency": None if key is None else (key.key, key.fingerprint),
            "answer": None if answer is None else _answer_values(answer),
        }
    )
    return b"%08x %b\n" % (zlib.crc32(text), text)


def from_line(line: bytes) -> JournalRecord:
    """Raises ValueError for what `to_line` did not write, or what was changed since."""
    checksum, text = line[:_CHECKSUM_CHARACTERS], line[_CHECKSUM_CHARACTERS + 1 : -1]
    if checksum != b"%08x" % zlib.crc32(text):
        raise ValueError("the checksum is not that of the line")
    try:
        values = orjson.loads(text)
        key, answer = values["idempotency"], values["answer"]
        return JournalRecord(
            event=usage_codec.decode(orjson.dumps(values["event"])),
            idempotency=None if key is None else IdempotencyKey(*key),
            answer=None if answer is None else _answer_of(answer),
        )
    except (TypeError, KeyError, binascii.Error, orjson.JSONDecodeError) as exc:
        raise ValueError("this is no record of a journal") from exc


def _answer_values(answer: RenderedAnswer) -> dict[str, object]:
    body = binascii.b2a_base64(answer.body, newline=False).decode("ascii")
    return {"headers": dict(answer.headers), "body": body}


def _answer_of(values: Mapping[str, object]) -> RenderedAnswer:
    headers, body = values["headers"], values["body"]
    if not isinstance(headers, dict) or not isinstance(body, str):
        raise TypeError("an answer is headers and a body")
    return RenderedAnswer(body=binascii.a2b_base64(body), headers=headers)


class JournalReader:
    """Reads a journal from its beginning, as much at a time as asked for. Blocks: call it in a thread.

    damaged_lines: those so far that hold no record, although they were written to their end.
    """

    def __init__(self, path: Path, *, end_bytes: int | None = None) -> None:
        """end_bytes: where to stop, for what lies behind was never acknowledged. None: at the end."""
        self.path = path
        self._end_bytes = end_bytes
        self._position_bytes = 0
        self.damaged_lines = 0

    def read(self, *, records: int, about_bytes: int) -> list[JournalRecord]:
        """The next ones: at most so many, and none more once they are that long; none at the end."""
        found: list[JournalRecord] = []
        begin = self._position_bytes
        with self.path.open("rb") as file:
            file.seek(begin)
            while len(found) < records and self._position_bytes - begin < about_bytes:
                line = self._next_line(file)
                if not line:
                    break
                self._position_bytes = file.tell()
                try:
                    found.append(from_line(line))
                except ValueError:
                    self.damaged_lines += 1
        return found

    def _next_line(self, file: BinaryIO) -> bytes:
        """With its end; b"" where no whole line follows. Of one that is too long, its last piece."""
        if self._end_bytes is not None and self._position_bytes >= self._end_bytes:
            return b""
        line = file.readline(MAX_LINE_BYTES)
        while len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE_BYTES)
        return line if line.endswith(b"\n") else b""
