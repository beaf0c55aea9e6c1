"""Work that goes on beside the requests until its task is cancelled."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from serving.errors import BackendUnavailable

RESTART_SECONDS = 1.0

log = logging.getLogger(__name__)


def is_cancelled() -> bool:
    """Whether the current task has been asked to end: a loop around a driver's calls must look.

    Before Python 3.12, `asyncio.wait_for`, which drivers send with, swallows a cancellation that comes just
    when what it waits for is done; the loop would go on for ever.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def keep_running(what: str, run: Callable[[], Awaitable[None]]) -> None:
    """`run`, and again whenever it fails: what else runs beside it goes on. Ends where `run` does."""
    while True:
        try:
            await run()
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            log.exception("%s was cancelled by itself, and begins anew", what)
        except Exception:
            log.exception("%s failed, and begins anew", what)
            if is_cancelled():
                return
        else:
            return
        await asyncio.sleep(RESTART_SECONDS)


async def do_every(seconds: float, do: Callable[[], Awaitable[None]]) -> None:
    """Whatever it fails with, it is done again."""
    while True:
        try:
            await do()
        except BackendUnavailable:
            pass  # whoever raised it has logged why
        except Exception:
            log.exception("work in the background failed")
        if is_cancelled():
            return
        await asyncio.sleep(seconds)
