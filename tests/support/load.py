"""Clients that keep books: what each asked, under which trace id, and what became of it.

Lean, since they share the machine with what they ask: one request, ready as bytes, over connections that stay
open, and bodies kept as they came.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import orjson

OK = 200
IN_PROGRESS = 409
GIVE_UP_SECONDS = 60.0
PAUSE_SECONDS = 0.05
BOUNDARY = "----pictures"


class Target(Protocol):
    @property
    def port(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def request_id(self) -> str:
        return str(orjson.loads(self.body)["request_id"])

    @property
    def code(self) -> str:
        return str(orjson.loads(self.body).get("code", "ok"))


@dataclass(slots=True)
class Attempt:
    """One request, once. trace_id: ours, and so the usage event's that it may have left.

    answer: None while it is under way, and for good where the connection broke.
    """

    trace_id: str
    port: int
    idempotency_key: str | None
    began: float
    ended: float | None = None
    answer: Answer | None = None

    @property
    def is_answered(self) -> bool:
        return self.answer is not None and self.answer.status == OK

    @property
    def has_broken(self) -> bool:
        return self.ended is not None and self.answer is None


@dataclass(slots=True)
class Books:
    attempts: list[Attempt] = field(default_factory=list)

    def under_way(self) -> list[Attempt]:
        return [each for each in self.attempts if each.ended is None]

    def answered(self) -> Iterator[tuple[Attempt, Answer]]:
        """Those that were answered with 200."""
        for each in self.attempts:
            if each.answer is not None and each.answer.status == OK:
                yield each, each.answer

    def broken(self) -> list[Attempt]:
        return [each for each in self.attempts if each.has_broken]

    def statuses(self) -> dict[int, int]:
        counts: dict[int, int] = {}
        for each in self.attempts:
            if each.answer is not None:
                counts[each.answer.status] = counts.get(each.answer.status, 0) + 1
        return counts


class Caller:
    """Asks with one API key and writes it into the books. Not for two requests at a time."""

    def __init__(self, api_key: str, model: str, picture: bytes, books: Books, *, pictures: int = 1) -> None:
        self._books = books
        self._head = (
            f"POST /v1/infer/{model} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {api_key}\r\n"
        )
        if pictures == 1:
            self._form, self._body = "image/jpeg", picture
        else:
            part = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="p.jpg"\r\n'
            one = f"{part}Content-Type: image/jpeg\r\n\r\n".encode() + picture + b"\r\n"
            self._form, self._body = (
                f"multipart/form-data; boundary={BOUNDARY}",
                one * pictures + f"--{BOUNDARY}--\r\n".encode(),
            )
        self._streams: dict[int, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}

    async def ask(self, target: Target, *, idempotency_key: str | None = None) -> Attempt | None:
        """None where there is nobody to ask: nothing was sent."""
        try:
            reader, writer = await self.connect(target)
        except OSError:
            return None
        attempt = Attempt(secrets.token_hex(16), target.port, idempotency_key, time.monotonic())
        self._books.attempts.append(attempt)
        try:
            writer.write(self._request(attempt))
            attempt.answer = await _read_answer(reader)
        except (OSError, asyncio.IncompleteReadError):
            self._drop(target.port)
        finally:
            attempt.ended = time.monotonic()
        if attempt.answer is not None and attempt.answer.headers.get("connection") == "close":
            self._drop(target.port)
        return attempt

    def close(self) -> None:
        for port in list(self._streams):
            self._drop(port)

    async def connect(self, target: Target) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The connection that is open, or a new one. Raises OSError where nobody listens."""
        port = target.port
        streams = self._streams.get(port)
        if streams is None or streams[0].at_eof():  # closed by the other side, between two requests
            self._drop(port)
            streams = self._streams[port] = await asyncio.open_connection("127.0.0.1", port)
        return streams

    def _drop(self, port: int) -> None:
        if (streams := self._streams.pop(port, None)) is not None:
            streams[1].transport.abort()

    def _request(self, attempt: Attempt) -> bytes:
        key = attempt.idempotency_key
        head = [
            f"{self._head}Content-Type: {self._form}",
            f"Content-Length: {len(self._body)}",
            f"traceparent: 00-{attempt.trace_id}-{secrets.token_hex(8)}-01",
            *([] if key is None else [f'Idempotency-Key: "{key}"']),
        ]
        return "\r\n".join([*head, "", ""]).encode() + self._body


async def _read_answer(reader: asyncio.StreamReader) -> Answer:
    status, *fields = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
    headers = {name.lower(): value for name, _, value in (each.partition(": ") for each in fields)}
    body = await reader.readexactly(int(headers["content-length"]))
    return Answer(int(status.split(" ")[1]), headers, body)


class Load:
    """Clients that ask without a pause, whichever gateway comes up; every other one with Idempotency-Keys.

    A request with a key that broke is asked again with it, of any gateway, until it is answered, and once
    more. One without is lost to its client, as it would be in the field.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        api_keys: Sequence[str],
        model: str,
        picture: bytes,
        *,
        clients: int,
        seed: int,
        pause_seconds: float = 0.0,
        idempotent: bool = True,
    ) -> None:
        """idempotent: False leaves `Idempotency-Key` out of all requests."""
        self.books = Books()
        self._targets = targets
        self._callers = [
            (api_keys[number % len(api_keys)], idempotent and number % 2 == 0) for number in range(clients)
        ]
        self._model, self._picture = model, picture
        self._random = random.Random(seed)
        self._pause_seconds = pause_seconds
        self._stopping = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Load:
        for api_key, with_key in self._callers:
            self._spawn(api_key, with_key=with_key)
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        """Everything that was begun comes to its end, retries included."""
        self._stopping = True
        if error is not None:
            for task in self._tasks:
                task.cancel()
        while self._tasks:
            done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {each for each in done if each.cancelled()}:
                if error is None:
                    task.result()
            self._tasks -= done

    def _spawn(self, api_key: str, *, with_key: bool) -> None:
        self._tasks.add(asyncio.create_task(self._client(api_key, with_key=with_key)))

    async def _client(self, api_key: str, *, with_key: bool) -> None:
        caller = Caller(api_key, self._model, self._picture, self.books)
        try:
            while not self._stopping:
                key = secrets.token_hex(8) if with_key else None
                attempt = await caller.ask(self._any(), idempotency_key=key)
                if attempt is None:
                    await asyncio.sleep(PAUSE_SECONDS)
                elif attempt.has_broken and key is not None:
                    self._tasks.add(asyncio.create_task(self._insist(api_key, key)))
                elif self._pause_seconds or not attempt.is_answered:
                    await asyncio.sleep(self._pause_seconds or PAUSE_SECONDS)
        finally:
            caller.close()

    async def _insist(self, api_key: str, key: str) -> None:
        caller = Caller(api_key, self._model, self._picture, self.books)
        give_up = time.monotonic() + GIVE_UP_SECONDS
        answers = 0
        try:
            while answers < 2:
                assert time.monotonic() < give_up, f"{key} is not answered within {GIVE_UP_SECONDS:g} s"
                attempt = await caller.ask(self._any(), idempotency_key=key)
                if attempt is not None and attempt.is_answered:
                    answers += 1
                else:
                    await asyncio.sleep(PAUSE_SECONDS)
        finally:
            caller.close()

    def _any(self) -> Target:
        return self._random.choice(self._targets)


async def ask_together(callers: Sequence[tuple[Caller, Target]]) -> list[Answer]:
    """All at once, over connections that are open before the first is asked. Each has to be answered."""
    for caller, target in callers:
        await caller.connect(target)
    attempts = await asyncio.gather(*(caller.ask(target) for caller, target in callers))
    answers = [attempt.answer for attempt in attempts if attempt is not None and attempt.answer is not None]
    assert len(answers) == len(callers), "a connection broke"
    return answers
