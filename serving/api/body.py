"""Reading a request body within its bounds: bytes per request, bytes per replica, seconds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.requests import Request

from serving.budget import Budget
from serving.errors import DeadlineExceeded, Overloaded, PayloadTooLarge


@dataclass(frozen=True, slots=True)
class BodyLimits:
    max_bytes: int
    timeout_seconds: float


@asynccontextmanager
async def held_body(
    request: Request, limits: BodyLimits, held_bytes: Budget, *, priority: int = 1
) -> AsyncIterator[bytes]:
    """The whole body, counted against the replica's budget for as long as the block runs.

    Raises PayloadTooLarge while reading (at once where Content-Length admits it), DeadlineExceeded for a
    client that dawdles, Overloaded where the replica holds too many bodies, ClientDisconnect.
    """
    if _declared_length(request) > limits.max_bytes:
        raise PayloadTooLarge(limits.max_bytes)
    taken_bytes = 0

    async def read() -> bytes:
        nonlocal taken_bytes
        chunks: list[bytes] = []
        try:
            async with asyncio.timeout(limits.timeout_seconds):
                async for chunk in request.stream():
                    if taken_bytes + len(chunk) > limits.max_bytes:
                        raise PayloadTooLarge(limits.max_bytes)
                    if not held_bytes.try_take(len(chunk), priority=priority):
                        raise Overloaded
                    taken_bytes += len(chunk)
                    chunks.append(chunk)
        except TimeoutError as exc:
            raise DeadlineExceeded("Receiving the request body") from exc
        return b"".join(chunks)

    try:
        yield await read()
    finally:
        held_bytes.give_back(taken_bytes)


def _declared_length(request: Request) -> int:
    text = request.headers.get("content-length", "0")
    return int(text) if text.isascii() and text.isdigit() else 0
