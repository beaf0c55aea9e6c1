"""The models that are served now: what the catalog holds and Triton has ready, swapped while requests run.

::

    catalog.scan ─► new or changed ─► backend.load ─► ready? ─► a new lane takes the old one's place
        (twice a second) └► gone ─► the lane is taken out                └► the old one ends when it is idle

A request keeps the lane it began with, and a lane names its version in every call, so no answer is ever read
with another model's contract. What fails is tried again, ever more seldom, and at once when its files change.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from serving.detector import Detector
from serving.domain.contract import ModelContract
from serving.errors import BackendUnavailable, ModelNotFound, ModelRefused, OperatorError, VisiongateError
from serving.ports import CatalogModel, Clock, InferenceBackend, ModelCatalog

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5
START_SECONDS = 5.0
"""What a start waits for models to load; the others follow."""
FIRST_RETRY_SECONDS = 1.0
LAST_RETRY_SECONDS = 60.0
UNLOAD_AFTER_SECONDS = 40.0
"""Other gateway processes look as often, and then finish what they have begun."""

MakeDetector = Callable[[CatalogModel], Detector]


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


@dataclass(slots=True)
class _Failure:
    model: CatalogModel
    why: str
    pause_seconds: float
    retry_at: float


class Lanes:
    """For one event loop. `run` keeps it up to date until it is cancelled."""

    def __init__(
        self,
        catalog: ModelCatalog,
        backend: InferenceBackend,
        make_detector: MakeDetector,
        clock: Clock,
    ) -> None:
        self._catalog = catalog
        self._backend = backend
        self._make_detector = make_detector
        self._clock = clock
        self._lanes: dict[str, Lane] = {}
        self._loading: set[str] = set()
        self._failures: dict[str, _Failure] = {}
        self._refused: Mapping[str, str] = {}
        self._gone_at: dict[str, float] = {}
        self._busy: dict[str, asyncio.Task[None]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._trouble: str | None = "not looked at yet"

    def names(self) -> Sequence[str]:
        """Sorted names of the models that are served."""
        return sorted(self._lanes)

    def get(self, name: str) -> Lane:
        """Raises ModelNotFound, ModelRefused, or BackendUnavailable for a model that is on its way."""
        if (lane := self._lanes.get(name)) is not None:
            return lane
        if name in self._refused:
            raise ModelRefused(name, self._refused[name])
        if name in self._failures:
            raise BackendUnavailable(f"The model {name!r} did not load.", retry_after_seconds=5.0)
        if name in self._loading:
            raise BackendUnavailable(f"The model {name!r} is being loaded.")
        if self._trouble is not None:
            raise BackendUnavailable("The models are not known yet.")
        raise ModelNotFound(name)

    def all_names(self) -> Sequence[str]:
        """Also those that `get` raises something for."""
        return sorted({*self._lanes, *self._refused, *self._failures, *self._loading})

    async def ready(self) -> dict[str, bool]:
        """Of each model that is served, whether Triton would answer for it now."""
        lanes = dict(self._lanes)
        answers = await asyncio.gather(*(self._backend.is_ready(lane.contract) for lane in lanes.values()))
        return dict(zip(lanes, answers, strict=True))

    async def start(self) -> None:
        """Look for the first time, before the first request: what the server has loaded is served then."""
        await self._refresh_or_note()
        if self._busy:
            await asyncio.wait(self._busy.values(), timeout=START_SECONDS)

    async def run(self) -> None:
        while True:
            await self._refresh_or_note()
            await asyncio.sleep(POLL_SECONDS)

    async def _refresh_or_note(self) -> None:
        """Whatever it is, the models that are served must not stop being looked after."""
        try:
            await self.refresh()
        except Exception as error:
            trouble = str(error)
            if trouble != self._trouble:  # once, not every second
                logger.exception("the model repository could not be looked through")
            self._trouble = trouble

    async def refresh(self) -> None:
        """Look once, and begin to bring what is served in line with it; `settle` waits for the rest.

        A model that takes long to load holds up no other.
        """
        scan = await asyncio.to_thread(self._catalog.scan)
        self._trouble = None
        self._note_refusals(scan.refused)
        # What is refused as it lies there now is served on as it was loaded.
        for name in set(self._lanes) - set(scan.models) - set(scan.refused):
            self._take_out(name)
            self._gone_at[name] = self._clock.monotonic()
        for name in set(self._failures) - set(scan.models):
            del self._failures[name]
        for name, model in scan.models.items():
            self._begin(name, self._bring_up(name, model))
        for name in self._due_for_unloading({*scan.models, *scan.refused}):
            self._begin(name, self._backend.unload(name))

    async def settle(self) -> None:
        """Return when all that `refresh` has begun is done."""
        while self._busy:
            await asyncio.wait(self._busy.values())

    async def close(self) -> None:
        """Return when every request has ended that was under way."""
        for task in self._busy.values():
            task.cancel()
        await self.settle()
        for name in self.names():
            self._take_out(name)
        if self._closing:
            await asyncio.wait(self._closing)

    def _begin(self, name: str, work: Coroutine[None, None, None]) -> None:
        """One thing at a time for one model: what is left to do, the next look finds again."""
        if name in self._busy:
            work.close()
            return
        task = self._busy[name] = asyncio.create_task(work)
        task.add_done_callback(lambda _: self._busy.pop(name))

    def _note_refusals(self, refused: Mapping[str, str]) -> None:
        for name, why in refused.items():
            if self._refused.get(name) != why:
                logger.warning("refused", extra={"facts": {"model": name, "why": why}})
        self._refused = refused

    async def _bring_up(self, name: str, model: CatalogModel) -> None:
        lane = self._lanes.get(name)
        is_new = lane is None or lane.model != model
        if not is_new and await self._backend.is_ready(model.contract):
            self._failures.pop(name, None)
            return
        if not self._may_try(name, model):
            return
        self._loading.add(name)
        try:
            await self._backend.load(model.contract)
            if is_new:
                self._put_in(name, model)
        except OperatorError as error:
            self._note_failure(name, model, error.detail)
        except VisiongateError:
            return  # the server is away or busy: the next look tries again
        except Exception:
            logger.exception("not loaded", extra={"facts": {"model": name}})
            self._note_failure(name, model, "see the error in the log")
        else:
            self._failures.pop(name, None)
        finally:
            self._loading.discard(name)

    def _may_try(self, name: str, model: CatalogModel) -> bool:
        failure = self._failures.get(name)
        return failure is None or failure.model != model or self._clock.monotonic() >= failure.retry_at

    def _note_failure(self, name: str, model: CatalogModel, why: str) -> None:
        before = self._failures.get(name)
        again = before is not None and before.model == model
        pause = min(LAST_RETRY_SECONDS, before.pause_seconds * 2) if before and again else FIRST_RETRY_SECONDS
        self._failures[name] = _Failure(model, why, pause, self._clock.monotonic() + pause)
        if not again:
            logger.warning("not loaded", extra={"facts": {"model": name, "why": why}})

    def _put_in(self, name: str, model: CatalogModel) -> None:
        self._take_out(name)
        self._lanes[name] = Lane(model, self._make_detector(model))
        logger.info(
            "served",
            extra={
                "facts": {
                    "model": name,
                    "version": model.contract.model_info.version,
                    "contract": model.contract.sha256,
                }
            },
        )

    def _take_out(self, name: str) -> None:
        lane = self._lanes.pop(name, None)
        if lane is not None:
            task = asyncio.create_task(lane.close(), name=name)
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _due_for_unloading(self, present: Collection[str]) -> Sequence[str]:
        now = self._clock.monotonic()
        self._gone_at = {name: gone for name, gone in self._gone_at.items() if name not in present}
        in_use = {task.get_name() for task in self._closing}
        due = [
            name
            for name, gone in self._gone_at.items()
            if now - gone >= UNLOAD_AFTER_SECONDS and name not in in_use
        ]
        for name in due:
            del self._gone_at[name]
        return due
