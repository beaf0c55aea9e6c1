"""`visiongate try REPOSITORY`: ask the models of a repository through a gateway of one's own.

::

    → {"id": "1", "model": "shapes", "picture": "/pictures/a.jpg", "options": {"confidence_threshold": 0.5}}
    ← {"ready": true, "models": {"shapes": {"served": true}}, "versions": {…}}    before the first answer
    ← {"id": "1", "status": 200, "answer": {…}}                          what HTTP answered, in order

A picture that cannot be read or sent has status 0, and the reason in the place of the answer.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from queue import Queue
from types import FrameType
from typing import Annotated, Any, NoReturn
from urllib.parse import quote

import httpx
import orjson
import typer
from pydantic import BaseModel, ConfigDict, ValidationError

from serving.cli.client import MEDIA_TYPES, TIMEOUT
from serving.errors import OperatorError
from serving.trial import Trial, running_trial

AT_A_TIME = 8
MAX_LINE_BYTES = 1 << 20
READ_BYTES = 1 << 16
INTERRUPTED = 130
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Question(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    model: str
    picture: Path
    options: dict[str, float | int | str] = {}


Answer = dict[str, Any]


def try_models(
    repository: Annotated[
        Path, typer.Argument(help="A Triton model repository.", exists=True, file_okay=False)
    ],
) -> None:
    """Serve a repository privately; read requests as JSON lines, write answers as JSON lines."""
    if sys.stdin is None or sys.stdout is None:  # what is opened next would get their numbers
        raise OperatorError("Requests come through stdin, answers go through stdout: leave both open.")
    for number in STOP_SIGNALS:
        signal.signal(number, _interrupt)
    try:
        with running_trial(repository.absolute()) as trial:
            _write(_introduction(trial))
            for answer in _answers(trial):
                _write(answer)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # a second one would only leave processes behind
    raise KeyboardInterrupt


def _introduction(trial: Trial) -> Answer:
    served: dict[str, Answer] = {name: {"served": True} for name in trial.served}
    refused = {
        name: {"served": False, "loadable": name not in trial.not_loaded, "reason": why}
        for name, why in trial.refused.items()
    }
    return {
        "ready": True,
        "models": served | refused,
        "versions": {"visiongate": version("visiongate"), "tritonserver": trial.triton_version},
    }


def _answers(trial: Trial) -> Iterator[Answer]:
    """In the order of the questions, each as soon as it and all before it are there.

    Raises OperatorError where they cannot be read or one is none, after those before it are answered. Who
    leaves early does not wait for the rest.
    """
    begun: Queue[Future[Answer] | OperatorError | None] = Queue(maxsize=AT_A_TIME)
    headers = {"Authorization": f"Bearer {trial.api_key}"}
    threads = ThreadPoolExecutor(AT_A_TIME)
    with httpx.Client(base_url=trial.url, headers=headers, timeout=TIMEOUT, trust_env=False) as client:

        def read_questions() -> None:
            try:
                for line in _lines(sys.stdin.fileno()):
                    begun.put(threads.submit(_ask, client, _read(line)))
                begun.put(None)
            except OperatorError as error:
                begun.put(error)
            except Exception as error:
                begun.put(OperatorError(f"The questions cannot be read: {error}"))

        # A daemon: who is interrupted does not wait for a line that never comes.
        threading.Thread(target=read_questions, name="questions", daemon=True).start()
        try:
            while (answer := begun.get()) is not None:
                if isinstance(answer, OperatorError):
                    raise answer
                yield answer.result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


def _lines(file: int) -> Iterator[bytes]:
    """Not through `sys.stdin`: a thread that waits in it holds its lock, and Python aborts where we end."""
    rest = b""
    while received := os.read(file, READ_BYTES):
        *whole, rest = (rest + received).split(b"\n")
        yield from whole
        if len(rest) > MAX_LINE_BYTES:
            raise OperatorError(f"This line is no question: it is longer than {MAX_LINE_BYTES} bytes")
    if rest:
        yield rest


def _read(line: bytes) -> Question:
    try:
        return Question.model_validate_json(line)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False)[0]
        raise OperatorError(f"This line is no question: {first['msg']} {list(first['loc'])}") from exc


def _ask(client: httpx.Client, question: Question) -> Answer:
    media_type = MEDIA_TYPES.get(question.picture.suffix.lower())
    if media_type is None:
        return _unanswered(question, f"{question.picture.name}: only {', '.join(MEDIA_TYPES)} can be sent.")
    try:
        response = client.post(
            f"/v1/infer/{quote(question.model, safe='')}",
            params=question.options,
            content=_picture(question.picture),
            headers={"Content-Type": media_type},
        )
        return {"id": question.id, "status": response.status_code, "answer": response.json()}
    except OSError as exc:
        return _unanswered(question, f"{question.picture.name}: {exc.strerror}")
    except (httpx.HTTPError, ValueError) as exc:
        return _unanswered(question, f"The gateway did not answer: {type(exc).__name__}")


def _picture(path: Path) -> bytes:
    if path.exists() and not path.is_file():  # a pipe would keep us waiting
        raise OSError(errno.EINVAL, "It is not a file")
    return path.read_bytes()


def _unanswered(question: Question, why: str) -> Answer:
    return {"id": question.id, "status": 0, "answer": {"detail": why}}


def _write(line: Answer) -> None:
    sys.stdout.buffer.write(orjson.dumps(line) + b"\n")
    sys.stdout.buffer.flush()
