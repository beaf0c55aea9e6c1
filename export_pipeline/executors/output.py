"""What an isolated process says: events and one error on its stdout, anything at all on its stderr.

None of it is believed further than it can be read: lines, messages and the log have bounds, and characters
that would drive a terminal are taken out.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Final

from pydantic import ValidationError

from export_pipeline.errors import ExportError, writing
from export_pipeline.progress import Event
from export_pipeline.text import printable

MAX_LINE_BYTES: Final = 65_536
MAX_LOG_BYTES: Final = 16 * 1024**2
_MAX_SENTENCE_CHARACTERS = 4000
_TAIL_LINES, _TAIL_LINE_CHARACTERS = 20, 300


class Events:
    """Puts bytes together to lines, and gives each event on. Keeps the error's sentence, if one comes."""

    def __init__(self, steps: Sequence[str], take: Callable[[Event], None]) -> None:
        self._steps = frozenset(steps)
        self._take = take
        self._buffer = b""
        self.sentence: str | None = None
        self.limit_exceeded = False

    def feed(self, data: bytes) -> None:
        """Raises ExportError for what is no event of these steps."""
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            self._read(line)
        if len(self._buffer) > MAX_LINE_BYTES:
            raise ExportError("The isolated process wrote an endless line where its events belong.")

    def _read(self, line: bytes) -> None:
        try:
            values = json.loads(line)
            if isinstance(values, dict) and "error" in values:
                self.sentence = printable(str(values["error"]))[:_MAX_SENTENCE_CHARACTERS]
                self.limit_exceeded = values.get("limit_exceeded") is True
                return
            event = Event.model_validate(values)
        except (ValueError, RecursionError, ValidationError) as exc:
            raise ExportError("The isolated process wrote something else where its events belong.") from exc
        if event.step not in self._steps or event.kind == "done_before":
            raise ExportError("The isolated process told of a step that it was not asked for.")
        message = printable(event.message).replace("\n", " ")
        self._take(event.model_copy(update={"message": message[:_MAX_SENTENCE_CHARACTERS]}))


class Log:
    """A job's log file, which is never longer than its bound; one that is half full begins anew."""

    def __init__(self, path: Path, max_bytes: int = MAX_LOG_BYTES) -> None:
        with writing(path):
            size = path.stat().st_size if path.exists() else 0
            self._file: IO[bytes] = path.open("ab" if size <= max_bytes // 2 else "wb", buffering=0)
        self._room_bytes = max_bytes - self._file.tell()
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._unfinished = b""

    def feed(self, data: bytes) -> None:
        if self._room_bytes > 0:
            with writing(Path(str(self._file.name))):
                self._file.write(data[: self._room_bytes])
            self._room_bytes -= len(data)
        *lines, rest = (self._unfinished + data).split(b"\n")
        self._unfinished = rest[-_TAIL_LINE_CHARACTERS:]
        self._tail.extend(_as_text(line) for line in lines[-_TAIL_LINES:])

    def last_lines(self) -> str:
        """The end of what was said, for an error message."""
        return "\n".join([*self._tail, _as_text(self._unfinished)]).strip()

    def close(self) -> None:
        self._file.close()


def _as_text(line: bytes) -> str:
    return printable(line[-_TAIL_LINE_CHARACTERS:].decode(errors="replace")).rstrip()
