"""An answer that came while the process stood still has come in time; one that does not come has not."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest

from serving.adapters.redis.patience import patiently

SECONDS = 0.1


async def test_an_answer_that_came_during_a_stall_counts() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        reader, writer = await asyncio.open_connection(sock=ours)
        async with patiently(SECONDS):
            asking = asyncio.create_task(reader.readexactly(1))
            await asyncio.sleep(0)
            theirs.send(b"!")
            time.sleep(5 * SECONDS)  # noqa: ASYNC251 - a process that does not get to run
            answer = await asking
        writer.close()

    assert answer == b"!"


async def test_an_answer_that_does_not_come_is_waited_for_as_long_as_said() -> None:
    began = time.monotonic()

    with pytest.raises(TimeoutError):
        async with patiently(SECONDS):
            await asyncio.Event().wait()

    assert SECONDS <= time.monotonic() - began < 10 * SECONDS


async def test_what_has_ended_in_time_is_left_alone_afterwards() -> None:
    async with patiently(SECONDS):
        pass

    await asyncio.sleep(2 * SECONDS)


async def test_a_cancelled_caller_is_cancelled() -> None:
    async def ask() -> None:
        async with patiently(SECONDS):
            await asyncio.Event().wait()

    asking = asyncio.create_task(ask())
    await asyncio.sleep(0)
    asking.cancel()

    with pytest.raises(asyncio.CancelledError):
        await asking
