"""An InferenceBackend without a server: a function in its place, the same promises about errors."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from serving.domain.contract import ModelContract
from serving.errors import BackendUnavailable, DeadlineExceeded
from serving.ports import Clock, InferenceOutput

Model = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""(batch, height, width, 3) uint8 to (batch, …) float32; may take its time."""


class InMemoryBackend:
    """Put a model's name into `unavailable`, and it is as if the server went away; take it out again."""

    def __init__(self, run: Model, clock: Clock, *, model_version: str = "1") -> None:
        self.unavailable: set[str] = set()
        self._closed = False
        self._run = run
        self._clock = clock
        self._model_version = model_version

    @contextlib.contextmanager
    def batch_buffer(self, contract: ModelContract, pictures: int) -> Iterator[NDArray[np.uint8]]:
        size = contract.input_size
        yield np.empty((pictures, size.height, size.width, 3), np.uint8)

    async def infer(
        self, contract: ModelContract, batch_nhwc: NDArray[np.uint8], *, deadline: float
    ) -> InferenceOutput:
        timeout_seconds = deadline - self._clock.monotonic()
        if timeout_seconds <= 0:
            raise DeadlineExceeded("Inference")
        if not await self.is_ready(contract):
            raise BackendUnavailable
        try:
            tensor = await asyncio.wait_for(asyncio.to_thread(self._run, batch_nhwc), timeout_seconds)
        except TimeoutError as exc:
            raise DeadlineExceeded("Inference") from exc
        return InferenceOutput(tensor=_read_only(tensor), model_version=self._model_version)

    async def is_ready(self, contract: ModelContract) -> bool:
        return not self._closed and contract.name not in self.unavailable

    async def close(self) -> None:
        self._closed = True


def _read_only(tensor: NDArray[np.float32]) -> NDArray[np.float32]:
    view = tensor.view()
    view.flags.writeable = False
    return view
