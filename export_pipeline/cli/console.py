"""Where the command writes, answers to stdout and everything else to stderr; and how it is stopped."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from rich.console import Console

from export_pipeline.errors import Cancelled

out = Console(soft_wrap=True)
errors = Console(stderr=True)


@contextlib.contextmanager
def cancellable() -> Iterator[None]:
    """Ctrl-C and SIGTERM raise Cancelled out of this block, once: a second would leave things behind."""
    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except KeyboardInterrupt:
        raise Cancelled from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt
