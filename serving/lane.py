"""One version of one model as it is served, for as long as anybody uses it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from serving.detector import Detector
from serving.domain.contract import ModelContract
from serving.ports import CatalogModel


@dataclass(eq=False, slots=True)
class Lane:
    """One version of one model, with everything between a picture and its predictions."""

    model: CatalogModel
    detector: Detector
    _users: int = 0
    _idle: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._idle.set()

    @property
    def contract(self) -> ModelContract:
        return self.model.contract

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """For one request, from its choice of the lane to its answer: the lane does not close before."""
        self._users += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._idle.set()

    async def close(self) -> None:
        """When the last request that began here has ended."""
        await self._idle.wait()
        await self.detector.close()
