"""The seams of the gateway: one small Protocol each, with a real and an in-memory form in `adapters`.

Every implementation of a port passes the same test suite (`tests/contract/`).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from serving.domain.contract import ModelContract
from serving.domain.tenant import Principal
from serving.domain.usage import UsageEvent


class Clock(Protocol):
    def monotonic(self) -> float:
        """Seconds since some fixed point; never goes back. Deadlines are points on this line."""

    def now(self) -> datetime:
        """The wall clock, in UTC, for records and expiry."""


class KeyStore(Protocol):
    async def authenticate(self, api_key: str) -> Principal:
        """Raises Unauthenticated, KeyExpired, KeyRevoked. No answer is older than a second."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """What admission set aside for one request, to be kept or given back as a whole."""

    request_id: str
    key_id: str
    pictures: int


class Admission(Protocol):
    async def admit(self, principal: Principal, *, request_id: str, pictures: int) -> Reservation:
        """Take one token a picture, all or none. Raises RateLimited, QuotaExceeded."""

    async def give_back(self, reservation: Reservation) -> None:
        """Undo `admit` for a request that failed. Giving back twice is giving back once."""


class UsageMeter(Protocol):
    async def settle(self, event: UsageEvent) -> None:
        """Record a billed answer before it leaves. Settling one `request_id` twice records it once."""


@dataclass(frozen=True, slots=True)
class CatalogModel:
    """An entry of the repository. max_batch_size: what Triton takes in one call.

    model_file: which file on the disk it is, for another of the same size is not the same model.
    """

    contract: ModelContract
    max_batch_size: int
    config_sha256: str = ""
    model_file: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class CatalogScan:
    """By name. refused: why this gateway cannot serve it, in a sentence that a client may read."""

    models: Mapping[str, CatalogModel]
    refused: Mapping[str, str]


class ModelCatalog(Protocol):
    def scan(self) -> CatalogScan:
        """What is there now. May block, so call it in a thread; costs next to nothing if nothing changed."""

    def verify(self, model: CatalogModel) -> None:
        """Read the model's file to its end: it has to be the one that the contract is about.

        May take long, so call it in a thread, beside others. Raises OperatorError for a client to read.
        """


@dataclass(frozen=True, slots=True)
class InferenceOutput:
    """tensor: (batch, …) float32, as the model's `output_spec` says; never to be written to."""

    tensor: NDArray[np.float32]
    model_version: str


class InferenceBackend(Protocol):
    def batch_buffer(
        self, contract: ModelContract, pictures: int
    ) -> AbstractContextManager[NDArray[np.uint8]]:
        """An uninitialised, C-contiguous (pictures, height, width, 3) array to make a batch in for `infer`.

        Whoever writes into it must have stopped before the context ends: it may be another batch's by then.
        `infer` takes any other array too, at the price of a copy.
        """

    async def infer(
        self, contract: ModelContract, batch_nhwc: NDArray[np.uint8], *, deadline: float
    ) -> InferenceOutput:
        """Run one batch. `deadline` is on `Clock.monotonic`'s line.

        Raises VersionGone where the server is there, but not this version, and BackendUnavailable,
        DeadlineExceeded, Overloaded. Cancelling the caller cancels the call.
        """

    async def is_ready(self, contract: ModelContract) -> bool:
        """Whether a request for this version would be answered now; False when that cannot be told."""

    async def load(self, contract: ModelContract) -> None:
        """Return once this version, as the repository holds it now, can be asked.

        Raises OperatorError, with the server's own reason, where it does not load, or loads other versions,
        and BackendUnavailable, DeadlineExceeded or Overloaded where that cannot be told. Asking again for
        what is loaded costs next to nothing.
        """

    async def unload(self, name: str) -> None:
        """Let the server forget a model, once what it has begun is done. Never raises: it is a courtesy."""

    async def close(self) -> None: ...
