"""The models that are served now: what the catalog holds and Triton has ready, swapped while requests run.

::

    catalog.scan ─► new or changed ─► catalog.verify ─► backend.load ─► a new lane takes the old one's place
        (twice a second) └► gone ─► the lane is taken out                  └► the old one ends when it is idle

A request keeps the lane it began with, and a lane names its version in every call, so no answer is ever read
with another model's contract. What fails is tried again, ever more seldom, and at once when its files change.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass

from serving.detector import Detector
from serving.domain.contract import ModelContract
from serving.errors import (
    BackendUnavailable,
    DeadlineExceeded,
    ModelNotFound,
    ModelRefused,
    OperatorError,
    Overloaded,
)
from serving.lane import Lane
from serving.ports import CatalogModel, CatalogScan, Clock, InferenceBackend, ModelCatalog

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5
SOONEST_LOOK_SECONDS = 0.05
"""Between two looks, however many requests ask for one."""
READY_FOR_SECONDS = 2.0
"""How long Triton is believed that it has a model ready."""
SCAN_SECONDS = 10.0
START_SECONDS = 5.0
"""What a start waits for models to load; the others follow."""
FIRST_RETRY_SECONDS = 1.0
LAST_RETRY_SECONDS = 60.0
UNLOAD_MARGIN_SECONDS = 10.0
"""On top of a request's time: other gateway processes look as often, and finish what they have begun."""

MakeDetector = Callable[[CatalogModel], Detector]
"""Raises OperatorError, for a client to read, for a model that no detector can be made for."""


@dataclass(slots=True)
class _Failure:
    """is_refusal: `why` is of the model's files, not of the server, and a client may read it."""

    model: CatalogModel
    why: str
    is_refusal: bool
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
        *,
        request_timeout_seconds: float,
    ) -> None:
        self._catalog = catalog
        self._backend = backend
        self._make_detector = make_detector
        self._clock = clock
        self._request_timeout_seconds = request_timeout_seconds
        self._lanes: dict[str, Lane] = {}
        self._present: frozenset[str] = frozenset()
        self._failures: dict[str, _Failure] = {}
        self._refused: Mapping[str, str] = {}
        self._ready_until: dict[str, float] = {}
        self._gone_at: dict[str, float] = {}
        self._busy: dict[str, asyncio.Task[None]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._scanning: asyncio.Task[CatalogScan] | None = None
        self._trouble: str | None = "not looked at yet"
        self._look_now = asyncio.Event()
        self._changed = asyncio.Event()

    def names(self) -> Sequence[str]:
        """Sorted names of the models that are served."""
        return sorted(self._lanes)

    def get(self, name: str) -> Lane:
        """Raises ModelNotFound, ModelRefused, or BackendUnavailable for a model that is on its way."""
        if (lane := self._lanes.get(name)) is not None:
            return lane
        if name in self._refused:
            raise ModelRefused(name, self._refused[name])
        if (failure := self._failures.get(name)) is not None:
            if failure.is_refusal:
                raise ModelRefused(name, failure.why)
            raise BackendUnavailable(f"The model {name!r} did not load.", retry_after_seconds=5.0)
        if name in self._present:
            raise BackendUnavailable(f"The model {name!r} is being loaded.")
        if self._trouble is not None:
            raise BackendUnavailable("The models are not known yet.")
        raise ModelNotFound(name)

    def all_names(self) -> Sequence[str]:
        """Also those that `get` raises something else than ModelNotFound for."""
        return sorted({*self._lanes, *self._refused, *self._present})

    async def successor(self, lane: Lane, *, within_seconds: float) -> Lane:
        """What took the place of a lane whose version is gone, or will within that time.

        Raises what `get` raises, and BackendUnavailable where the lane stays.
        """
        name = lane.contract.name
        self._ready_until.pop(name, None)
        self._look_now.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_seconds):
                while self._lanes.get(name) is lane:
                    await self._changed.wait()
        found = self.get(name)
        if found is lane:
            raise BackendUnavailable
        return found

    async def ready(self) -> dict[str, bool]:
        """Of each model that is served, whether Triton would answer for it now."""
        lanes = dict(self._lanes)
        answers = await asyncio.gather(*(self._backend.is_ready(lane.contract) for lane in lanes.values()))
        return dict(zip(lanes, answers, strict=True))

    async def start(self) -> None:
        """Look for the first time, before the first request: what the server has loaded is served then."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_SECONDS):
                await self._refresh_or_note()
                await self.settle()

    async def run(self) -> None:
        while True:
            self._look_now.clear()
            await self._refresh_or_note()
            await asyncio.sleep(SOONEST_LOOK_SECONDS)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS - SOONEST_LOOK_SECONDS):
                    await self._look_now.wait()

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
        scan = await self._scan()
        changed = self._changed_under_their_version(scan.models)
        models = {name: model for name, model in scan.models.items() if name not in changed}
        self._note_refusals({**scan.refused, **changed})
        self._present = frozenset(models)
        for name in set(self._lanes) - set(models) - set(self._refused):
            self._take_out(name)
            self._gone_at[name] = self._clock.monotonic()
        for name in set(self._failures) - set(models):
            del self._failures[name]
        for name, model in models.items():
            self._begin(name, self._bring_up(name, model))
        # What is refused as it lies there now is served on as it was loaded, for as long as it is.
        for name in self._lanes.keys() & self._refused.keys():
            self._begin(name, self._take_out_if_lost(name))
        self._unload_what_is_due()
        self._trouble = None

    async def settle(self) -> None:
        """Return when all that `refresh` has begun is done."""
        while self._busy:
            await asyncio.wait(self._busy.values())

    async def close(self) -> None:
        """Return when every request has ended that was under way, or should have."""
        for task in self._busy.values():
            task.cancel()
        await self.settle()
        for name in self.names():
            self._take_out(name)
        if not self._closing:
            return
        _, left = await asyncio.wait(self._closing, timeout=self._request_timeout_seconds)
        if left:
            names = sorted(task.get_name() for task in left)
            logger.error("still in use at the end", extra={"facts": {"models": names}})
        for task in left:
            task.cancel()

    async def _scan(self) -> CatalogScan:
        """A disk that does not answer holds one thread, however often it is looked at."""
        if self._scanning is None:
            self._scanning = asyncio.create_task(asyncio.to_thread(self._catalog.scan))
        scanning = self._scanning
        await asyncio.wait([scanning], timeout=SCAN_SECONDS)
        if not scanning.done():
            raise OperatorError("The model repository does not answer.")
        self._scanning = None
        return scanning.result()

    def _begin(self, name: str, work: Coroutine[None, None, None]) -> bool:
        """One thing at a time for one model: what is left to do, the next look finds again."""
        if name in self._busy:
            work.close()
            return False
        task = self._busy[name] = asyncio.create_task(work, name=name)
        task.add_done_callback(lambda _: self._busy.pop(name))
        task.add_done_callback(_log_if_failed)
        return True

    def _changed_under_their_version(self, models: Mapping[str, CatalogModel]) -> Mapping[str, str]:
        """By name, why: Triton would answer for the lane's version with a model that the lane cannot read."""
        return {
            name: f"version {version} has changed; publish it as another version"
            for name, lane in self._lanes.items()
            if (model := models.get(name)) is not None
            and (version := model.contract.model_info.version) == lane.contract.model_info.version
            and not _answer_alike(lane.contract, model.contract)
        }

    def _note_refusals(self, refused: Mapping[str, str]) -> None:
        for name, why in refused.items():
            if self._refused.get(name) != why:
                logger.warning("refused", extra={"facts": {"model": name, "why": why}})
        self._refused = refused

    async def _bring_up(self, name: str, model: CatalogModel) -> None:
        lane = self._lanes.get(name)
        is_new = lane is None or lane.model != model
        if not is_new and await self._is_still_ready(name, model):
            self._failures.pop(name, None)
            return
        if not self._may_try(name, model):
            return
        server_was_asked = False
        try:
            new = await self._make_lane(model) if is_new else None
            server_was_asked = True
            await self._backend.load(model.contract)
        except (BackendUnavailable, DeadlineExceeded, Overloaded):
            return  # the server is away or busy: the next look tries again
        except OperatorError as error:
            self._note_failure(name, model, error.detail, is_refusal=not server_was_asked)
        except Exception:
            logger.exception("not loaded", extra={"facts": {"model": name}})
            self._note_failure(name, model, "see the error in the log", is_refusal=False)
        else:
            self._failures.pop(name, None)
            if new is not None:
                self._put_in(name, new)

    async def _make_lane(self, model: CatalogModel) -> Lane:
        await asyncio.to_thread(self._catalog.verify, model)
        return Lane(model, self._make_detector(model))

    async def _is_still_ready(self, name: str, model: CatalogModel) -> bool:
        if self._clock.monotonic() < self._ready_until.get(name, 0.0):
            return True
        ready = await self._backend.is_ready(model.contract)
        if ready:
            self._ready_until[name] = self._clock.monotonic() + READY_FOR_SECONDS
        return ready

    async def _take_out_if_lost(self, name: str) -> None:
        lane = self._lanes[name]
        if not await self._backend.is_ready(lane.contract):
            self._take_out(name)

    def _may_try(self, name: str, model: CatalogModel) -> bool:
        failure = self._failures.get(name)
        return failure is None or failure.model != model or self._clock.monotonic() >= failure.retry_at

    def _note_failure(self, name: str, model: CatalogModel, why: str, *, is_refusal: bool) -> None:
        before = self._failures.get(name)
        again = before is not None and before.model == model
        pause = min(LAST_RETRY_SECONDS, before.pause_seconds * 2) if before and again else FIRST_RETRY_SECONDS
        self._failures[name] = _Failure(model, why, is_refusal, pause, self._clock.monotonic() + pause)
        if not again:
            logger.warning("not loaded", extra={"facts": {"model": name, "why": why}})

    def _put_in(self, name: str, lane: Lane) -> None:
        self._take_out(name)
        self._lanes[name] = lane
        facts = {
            "model": name,
            "version": lane.contract.model_info.version,
            "contract": lane.contract.sha256,
        }
        logger.info("served", extra={"facts": facts})

    def _take_out(self, name: str) -> None:
        self._ready_until.pop(name, None)
        lane = self._lanes.pop(name, None)
        if lane is None:
            return
        task = asyncio.create_task(lane.close(), name=name)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        task.add_done_callback(_log_if_failed)
        self._changed.set()  # whoever waits is woken, and finds what is there once we have returned
        self._changed = asyncio.Event()

    def _unload_what_is_due(self) -> None:
        for name in self._gone_at.keys() & {*self._present, *self._refused}:
            del self._gone_at[name]  # it has come back
        long_ago = self._clock.monotonic() - self._request_timeout_seconds - UNLOAD_MARGIN_SECONDS
        in_use = {task.get_name() for task in self._closing}
        due = {name for name, gone in self._gone_at.items() if gone <= long_ago} - in_use
        for name in due:
            if self._begin(name, self._backend.unload(name)):
                del self._gone_at[name]


def _answer_alike(one: ModelContract, other: ModelContract) -> bool:
    """Whether the same answer of the server means the same by both."""
    files = {each.model_info.model_file.sha256 for each in (one, other) if each.model_info.model_file}
    tensors = [(each.input_spec, each.output_spec, each.class_names) for each in (one, other)]
    return len(files) <= 1 and tensors[0] == tensors[1]


def _log_if_failed(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("not done", exc_info=error, extra={"facts": {"model": task.get_name()}})
