"""An InferenceBackend without a server: a function in its place, the same promises about errors."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from serving.domain.contract import ModelContract
from serving.errors import BackendUnavailable, DeadlineExceeded, OperatorError, VersionGone
from serving.ports import Clock, InferenceOutput

Model = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""(batch, height, width, 3) uint8 to (batch, …) float32; may take its time."""


class InMemoryBackend:
    """Put a model's name into `unavailable`, and it is as if the server went away; take it out again.

    `loaded` holds each model's versions, to be changed like the server's; `broken`, by name, why a model does
    not load; `loads` and `unloads` what was asked for, in order; `priorities` those of the batches.
    """

    def __init__(self, run: Model, clock: Clock) -> None:
        self.unavailable: set[str] = set()
        self.loaded: dict[str, set[str]] = {}
        self.broken: dict[str, str] = {}
        self.loads: list[tuple[str, str]] = []
        self.unloads: list[str] = []
        self.priorities: list[int] = []
        self._closed = False
        self._run = run
        self._clock = clock

    @contextlib.contextmanager
    def batch_buffer(self, contract: ModelContract, pictures: int) -> Iterator[NDArray[np.uint8]]:
        size = contract.input_size
        yield np.empty((pictures, size.height, size.width, 3), np.uint8)

    async def infer(
        self,
        contract: ModelContract,
        batch_nhwc: NDArray[np.uint8],
        *,
        deadline: float,
        priority: int,
    ) -> InferenceOutput:
        self.priorities.append(priority)
        timeout_seconds = deadline - self._clock.monotonic()
        if timeout_seconds <= 0:
            raise DeadlineExceeded("Inference")
        self._require_server(contract)
        if not await self.is_ready(contract):
            raise VersionGone
        try:
            tensor = await asyncio.wait_for(asyncio.to_thread(self._run, batch_nhwc), timeout_seconds)
        except TimeoutError as exc:
            raise DeadlineExceeded("Inference") from exc
        return InferenceOutput(tensor=_read_only(tensor), model_version=contract.model_info.version)

    async def is_ready(self, contract: ModelContract) -> bool:
        served = contract.model_info.version in self.loaded.get(contract.name, ())
        return served and not self._closed and contract.name not in self.unavailable

    async def load(self, contract: ModelContract) -> None:
        self.loads.append((contract.name, contract.model_info.version))
        if contract.name in self.broken:
            raise OperatorError(self.broken[contract.name])
        self._require_server(contract)
        self.loaded.setdefault(contract.name, set()).add(contract.model_info.version)

    async def unload(self, name: str) -> None:
        self.unloads.append(name)
        self.loaded.pop(name, None)

    async def close(self) -> None:
        self._closed = True

    def _require_server(self, contract: ModelContract) -> None:
        if self._closed or contract.name in self.unavailable:
            raise BackendUnavailable


def _read_only(tensor: NDArray[np.float32]) -> NDArray[np.float32]:
    view = tensor.view()
    view.flags.writeable = False
    return view
