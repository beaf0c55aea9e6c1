"""The seams of the gateway: one small Protocol each, with a real and an in-memory form in `adapters`.

Every implementation of a port passes the same test suite (`tests/contract/`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from serving.domain.contract import ModelContract
from serving.domain.idempotency import IdempotencyKey
from serving.domain.inference import RenderedAnswer
from serving.domain.key_change import AuditRow
from serving.domain.key_record import IssuedKey, KeyRecord
from serving.domain.limits import LimitState
from serving.domain.month import Month
from serving.domain.tenant import Principal
from serving.domain.usage import Invoice, UsageEvent, UsageQuery, UsageTotals


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
    """What admission set aside for one request, until it is settled or given back as a whole.

    admitted_at: on the clock that admitted it, which is Redis' where Redis did; its month is charged.
    limits: what is left after it.
    """

    request_id: str
    key_id: str
    pictures: int
    admitted_at: datetime
    limits: LimitState
    idempotency: IdempotencyKey | None = None

    @property
    def month(self) -> Month:
        return Month.of(self.admitted_at)


class Admission(Protocol):
    """Rate, monthly quota and concurrency of a key, decided together, on one clock for all gateways."""

    async def admit(
        self,
        principal: Principal,
        *,
        request_id: str,
        pictures: int,
        lease_seconds: float,
        idempotency: IdempotencyKey | None = None,
    ) -> Reservation | RenderedAnswer:
        """Take a token and a picture of the month's quota for each picture, and one place, all or nothing.

        A reservation that nobody settles or gives back within `lease_seconds` is given back by itself. Where
        the idempotency key has been answered before, that answer, and nothing is taken.

        Raises RateLimited, TooManyAtOnce, QuotaExceeded; InvalidRequest for more pictures than the burst;
        IdempotencyKeyReused, IdempotencyKeyInUse, AnswerNotKept; AccountsUnavailable.
        """

    async def answered(self, principal: Principal, idempotency: IdempotencyKey) -> RenderedAnswer | None:
        """What `admit` would answer this key with, for a request that cannot even be asked any more.

        None where it is free. Takes and claims nothing. Raises IdempotencyKeyReused, IdempotencyKeyInUse,
        AnswerNotKept; AccountsUnavailable.
        """

    async def give_back(self, reservation: Reservation) -> None:
        """Undo `admit` for a request that failed, its claim on the idempotency key included.

        Giving back twice is giving back once. Never raises: what cannot be given back now lapses by itself.
        """

    async def limits(self, principal: Principal) -> LimitState:
        """What is left, and nothing taken. Raises AccountsUnavailable."""


class UsageMeter(Protocol):
    async def settle(self, event: UsageEvent, reservation: Reservation, answer: RenderedAnswer) -> None:
        """Record a billed answer durably, before it leaves, and end its reservation.

        What was reserved and not billed (unusable pictures of a list) is given back. The answer is kept for
        24 hours under the reservation's idempotency key, or, without room for it, that there was one.
        Settling one `request_id` twice bills it once. Raises AccountsUnavailable where it could not be
        recorded anywhere.
        """


class Ledger(Protocol):
    """What has been billed, for good. Each method raises BackendUnavailable."""

    async def usage(self, query: UsageQuery) -> Sequence[UsageTotals]:
        """By group, in order. Where nothing matches there is no row, but of a `total` one of zeros."""

    async def invoice(self, month: Month, *, user: str | None = None) -> Invoice:
        """Of everybody, or of one user."""


class KeyAdministration(Protocol):
    """What owners do with keys. `actor` goes into the audit table. Each raises BackendUnavailable.

    A change and its row of the audit table are kept together or not at all. It counts on every gateway within
    a second, and at once where it could be published, which it is before the method returns.
    """

    async def create(
        self,
        *,
        actor: str,
        user: str,
        tier: str,
        models: Iterable[str] | None = None,
        expires_at: datetime | None = None,
    ) -> IssuedKey:
        """`models` None allows every model. Raises OperatorError for what no key can have."""

    async def list(self, *, user: str | None = None) -> Sequence[KeyRecord]:
        """Every key, also revoked ones, oldest first."""

    async def get(self, key_id: str) -> KeyRecord | None: ...

    async def revoke(self, key_id: str, *, actor: str) -> KeyRecord:
        """For good, all of its secrets. The first revocation's time stays. Raises UnknownKey."""

    async def rotate(self, key_id: str, *, actor: str, overlap: timedelta) -> IssuedKey:
        """A new secret for the same key, whose id, limits and usage stay; earlier ones end with the overlap.

        Raises UnknownKey; OperatorError for a key that is revoked or has expired.
        """

    async def set_user_enabled(self, user: str, *, enabled: bool, actor: str) -> int:
        """Stop all of a user's keys at once, or let them work again; how many keys that concerns.

        Those that are revoked or have expired are not counted. While disabled, a user gets no new key.
        """

    async def history(
        self, *, key_id: str | None = None, user: str | None = None, limit: int = 1000
    ) -> Sequence[AuditRow]:
        """The latest changes, oldest first: all, or of a key with those of its user, or of a user's."""


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
        self, contract: ModelContract, batch_nhwc: NDArray[np.uint8], *, deadline: float, priority: int
    ) -> InferenceOutput:
        """Run one batch. `deadline` is on `Clock.monotonic`'s line; priority 1 overtakes 2 in its queue.

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
