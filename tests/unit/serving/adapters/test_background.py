from __future__ import annotations

import asyncio
import contextlib
import logging

import pytest

from serving.adapters import background
from serving.adapters.background import do_every, keep_running
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


async def test_what_has_failed_begins_anew_while_the_rest_goes_on(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "RESTART_SECONDS", 0.0)
    failures: list[BaseException] = [ValueError("a slip of ours"), asyncio.CancelledError()]
    begun, runs_again, ended = 0, asyncio.Event(), []

    async def fail_twice() -> None:
        nonlocal begun
        begun += 1
        if failures:
            raise failures.pop(0)
        runs_again.set()
        await asyncio.Event().wait()

    async def go_on() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("the other")

    running = asyncio.gather(keep_running("the one", fail_twice), keep_running("the other", go_on))
    async with asyncio.timeout(10):
        await runs_again.wait()
    ended_meanwhile = list(ended)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert (begun, ended_meanwhile, ended) == (3, [], ["the other"])
    assert caplog.messages == [
        "the one failed, and begins anew",
        "the one was cancelled by itself, and begins anew",
    ]


async def test_what_comes_to_its_end_does_not_begin_anew() -> None:
    times = 0

    async def end() -> None:
        nonlocal times
        times += 1

    await keep_running("the one", end)

    assert times == 1


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
