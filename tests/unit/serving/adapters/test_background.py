from __future__ import annotations

import asyncio
import contextlib
import logging

import pytest

from serving.adapters.background import do_every
from serving.errors import BackendUnavailable


@pytest.mark.parametrize(
    ("error", "logged"),
    [
        (BackendUnavailable(), []),  # known trouble, which its own place has logged
        (ValueError("a slip of ours"), ["work in the background failed"]),
    ],
)
async def test_what_has_failed_is_done_again(
    error: Exception, logged: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    times, is_done_again = 0, asyncio.Event()

    async def fail_once() -> None:
        nonlocal times
        times += 1
        if times == 1:
            raise error
        is_done_again.set()

    with caplog.at_level(logging.INFO):
        running = asyncio.create_task(do_every(0.0, fail_once))
        async with asyncio.timeout(10):
            await is_done_again.wait()
        running.cancel()
        await asyncio.wait([running], timeout=10)

    assert running.cancelled()
    assert caplog.messages == logged


async def test_it_ends_also_where_a_driver_swallows_the_cancellation() -> None:
    is_waiting = asyncio.Event()

    async def swallow() -> None:
        is_waiting.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    running = asyncio.create_task(do_every(3600.0, swallow))
    await is_waiting.wait()

    running.cancel()

    assert (await asyncio.wait([running], timeout=10))[0] == {running}
