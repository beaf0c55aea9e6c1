"""Waiting for what real threads and processes do in their own time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


def eventually(is_so: Callable[[], bool], *, within_seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + within_seconds
    pause = threading.Event()
    while not is_so():
        if time.monotonic() > deadline:
            return False
        pause.wait(0.02)
    return True
