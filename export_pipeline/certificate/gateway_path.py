"""The path a request takes through the gateway: a real Triton, a real gateway, real HTTP.

The gateway is not imported but run: `visiongate try REPOSITORY` starts both for a model repository, reads
requests as JSON lines and answers in order. See `serving.cli` for the other end.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from export_pipeline.errors import ExportError

READY_SECONDS = 120.0
ANSWER_SECONDS = 60.0
"""Between two answers."""
STOP_SECONDS = 20.0
MAX_LINE_BYTES = 4 * 1024**2
LAST_WORDS_BYTES = 4096
PASSED_ON = (
    *("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES"),
    "VISIONGATE_TRITON_EXECUTABLE",
)
"""Of our environment; the rest (credentials, settings of a gateway that runs here) is not for the trial."""


@dataclass(frozen=True, slots=True)
class Question:
    """One picture for one model. options: as in the body of a request."""

    model: str
    picture: Path
    options: Mapping[str, float | int]


class _Line(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class ModelState(_Line):
    """reason: why it is not served. loadable: False where Triton does not load it."""

    served: bool
    loadable: bool = True
    reason: str | None = None


class _Ready(_Line):
    ready: bool
    models: dict[str, ModelState]
    versions: dict[str, str] = {}


class Answer(_Line):
    """answer: the HTTP body, of a refusal a problem document."""

    id: str
    status: int
    answer: dict[str, Any]

    @property
    def refusal(self) -> str | None:
        """Why there are no predictions: a sentence, or None."""
        if self.status == 200:
            return None
        return f"{self.status} {self.answer.get('code', '')}: {self.answer.get('detail', '')}"


class GatewayTrial:
    """A running `visiongate try`. Use `gateway_trial`."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._stdin, self._stdout, self._stderr = _pipes(process)
        self._lines: deque[bytes] = deque()
        self._partial = b""
        self._last_words = b""
        self._unsent = memoryview(b"")
        self._selector = selectors.DefaultSelector()
        for stream in (self._stdout, self._stderr):
            os.set_blocking(stream.fileno(), False)
            self._selector.register(stream, selectors.EVENT_READ)
        os.set_blocking(self._stdin.fileno(), False)
        ready = self._read(_Ready, READY_SECONDS)
        self.models = ready.models
        self.versions = ready.versions

    def ask(self, questions: Sequence[Question]) -> Iterator[Answer]:
        """One answer a question, in their order, as they come. Raises ExportError where the trial ends."""
        lines = [
            {"id": str(index), "model": each.model, "picture": str(each.picture), "options": {**each.options}}
            for index, each in enumerate(questions)
        ]
        self._unsent = memoryview(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
        if len(self._unsent):
            self._selector.register(self._stdin, selectors.EVENT_WRITE)
        for index in range(len(questions)):
            answer = self._read(Answer, ANSWER_SECONDS)
            if answer.id != str(index):
                raise ExportError(f"The gateway's trial answered {answer.id!r} where {index} was due.")
            yield answer

    def stop(self) -> None:
        """End it, and everything it has started."""
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()
        for ask_to_end in (None, signal.SIGTERM, signal.SIGKILL):
            if ask_to_end is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, ask_to_end)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
                break
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # whoever of its group is left
        self._selector.close()
        self._stdout.close()
        self._stderr.close()

    def _read(self, kind: type[Any], timeout_seconds: float) -> Any:
        deadline = time.monotonic() + timeout_seconds
        while not self._lines:
            self._move(deadline)
        line = self._lines.popleft()
        try:
            return kind.model_validate_json(line)
        except ValidationError as exc:
            raise ExportError(f"The gateway's trial said {line[:200]!r}, which is no answer.") from exc

    def _move(self, deadline: float) -> None:
        """Send and receive what can be, at least something. Raises ExportError at the deadline or the end."""
        events = self._selector.select(max(0.0, deadline - time.monotonic()))
        if not events:
            raise ExportError(f"The gateway's trial did not answer in time.{self._said()}")
        for key, _ in events:
            if key.fileobj is self._stdin:
                self._send()
            elif key.fileobj is self._stderr:
                said = os.read(self._stderr.fileno(), 65536)
                self._last_words = (self._last_words + said)[-LAST_WORDS_BYTES:]
                if not said:
                    self._selector.unregister(self._stderr)
            else:
                self._receive()

    def _send(self) -> None:
        try:
            self._unsent = self._unsent[os.write(self._stdin.fileno(), self._unsent[:65536]) :]
        except BrokenPipeError:
            self._unsent = memoryview(b"")  # it has ended; reading says so, and what it said last
        if not len(self._unsent):
            self._selector.unregister(self._stdin)

    def _receive(self) -> None:
        received = os.read(self._stdout.fileno(), 65536)
        if not received:
            raise ExportError(f"The gateway's trial ended too early.{self._said()}")
        *whole, self._partial = (self._partial + received).split(b"\n")
        self._lines.extend(whole)
        if len(self._partial) > MAX_LINE_BYTES:
            raise ExportError("The gateway's trial answered a line without an end.")

    def _said(self) -> str:
        with contextlib.suppress(BlockingIOError, ValueError):
            self._last_words = (self._last_words + os.read(self._stderr.fileno(), 65536))[-LAST_WORDS_BYTES:]
        words = self._last_words.decode(errors="replace").strip()
        return f" It said last:\n{words}" if words else ""


@contextlib.contextmanager
def gateway_trial(repository: Path, command: Path | None = None) -> Iterator[GatewayTrial]:
    """A gateway of its own for this model repository; gone, with its Triton, when the block ends.

    command: the gateway's; None is the one beside this Python. Raises ExportError where it does not come up.
    """
    command = command or Path(sys.executable).with_name("visiongate")
    if not command.is_file():
        raise ExportError(f"{command} is missing, so that nothing can be tried through the gateway.")
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    process = subprocess.Popen(  # noqa: S603 (our own command; the repository is a path we made)
        [command, "try", repository],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    try:
        trial = GatewayTrial(process)
    except BaseException:
        _kill(process)
        raise
    try:
        yield trial
    finally:
        trial.stop()


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes], IO[bytes]]:
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    return process.stdin, process.stdout, process.stderr


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(STOP_SECONDS)
    for stream in _pipes(process):
        stream.close()
