"""A model that waits until it is let through, for tests of what happens meanwhile."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from serving.adapters.memory.backend import Model

GIVE_UP_SECONDS = 30


@dataclass(frozen=True)
class Gate:
    """`model`, which runs in a thread, after `opened`."""

    behind: Model
    opened: threading.Event = field(default_factory=threading.Event)
    _reached: threading.Event = field(default_factory=threading.Event)

    def model(self, batch_nhwc: NDArray[np.uint8]) -> NDArray[np.float32]:
        self._reached.set()
        if not self.opened.wait(GIVE_UP_SECONDS):
            raise TimeoutError("nobody opened the gate")
        return self.behind(batch_nhwc)

    async def reached(self) -> None:
        """Return once a request waits at it."""
        assert await asyncio.to_thread(self._reached.wait, GIVE_UP_SECONDS)
