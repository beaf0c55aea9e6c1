"""A timeout for an answer, which our own being busy does not use up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

STEPS = 4


@asynccontextmanager
async def patiently(seconds: float) -> AsyncIterator[None]:
    """Raise TimeoutError where the block takes longer than so many seconds, a stall of the event loop aside.

    The time passes in steps, each begun once the loop has seen the end of the last. A process that does not
    get to run for a second (a burst of requests on a busy machine, a container's CPU quota) has used up one
    of them, and in the others it reads the answers that came meanwhile. By the clock alone it would take
    every call under way for unanswered, and with it Redis for gone.
    """
    loop = asyncio.get_running_loop()
    steps_left = STEPS
    handle: asyncio.TimerHandle

    def pass_step() -> None:
        nonlocal steps_left, handle
        steps_left -= 1
        if steps_left:
            handle = loop.call_later(seconds / STEPS, pass_step)
        else:
            timeout.reschedule(loop.time())

    async with asyncio.timeout(None) as timeout:
        handle = loop.call_later(seconds / STEPS, pass_step)
        try:
            yield
        finally:
            handle.cancel()
