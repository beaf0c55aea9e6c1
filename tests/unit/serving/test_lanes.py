"""Models come, change, fail and go while requests run; none of it disturbs a request or another model."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import orjson
import pytest
from numpy.typing import NDArray

from serving.adapters.memory.backend import InMemoryBackend
from serving.adapters.memory.catalog import InMemoryCatalog
from serving.adapters.memory.clock import ManualClock
from serving.detector import Detector
from serving.domain.contract import ModelContract
from serving.errors import (
    BackendUnavailable,
    DeadlineExceeded,
    InternalError,
    ModelNotFound,
    ModelRefused,
    OperatorError,
    Overloaded,
)
from serving.lanes import (
    FIRST_RETRY_SECONDS,
    LAST_RETRY_SECONDS,
    READY_FOR_SECONDS,
    UNLOAD_MARGIN_SECONDS,
    Lanes,
)
from serving.ports import CatalogModel, CatalogScan
from tests.support.contracts import metadata
from tests.support.tiers import make_tier
from tests.support.world import encode, running_world

REQUEST_TIMEOUT_SECONDS = 7.0
UNLOAD_AFTER_SECONDS = REQUEST_TIMEOUT_SECONDS + UNLOAD_MARGIN_SECONDS


def version(
    number: str, name: str = "cats", *, of: str = "cat", sha256: str | None = None, anchors: int = 1
) -> ModelContract:
    raw = metadata(name, side=4, anchors=anchors, classes=[of])
    raw["model_info"]["version"] = number
    if sha256 is not None:
        raw["model_info"]["model_file"] = {"name": "model.onnx", "sha256": sha256 * 64, "size_bytes": 1}
    return ModelContract.parse(orjson.dumps(raw))


def no_model(_: NDArray[np.uint8]) -> NDArray[np.float32]:
    raise AssertionError("no picture is sent here")


class IdleDetector:
    """Stands where a Detector would: these tests send no pictures."""

    def __init__(self, model: CatalogModel) -> None:
        self.model = model
        self.closed = False

    async def close(self) -> None:
        self.closed = True


class Stage:
    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.catalog = InMemoryCatalog()
        self.backend = InMemoryBackend(no_model, clock)
        self.detectors: list[IdleDetector] = []
        self.unmakeable: dict[str, Exception] = {}
        self.lanes = Lanes(
            self.catalog,
            self.backend,
            self._make,
            clock,
            request_timeout_seconds=REQUEST_TIMEOUT_SECONDS,
        )

    def _make(self, model: CatalogModel) -> Detector:
        if (error := self.unmakeable.get(model.contract.name)) is not None:
            raise error
        self.detectors.append(IdleDetector(model))
        made: Any = self.detectors[-1]
        return made  # type: ignore[no-any-return]  # a stand-in, see IdleDetector

    async def look(self) -> None:
        await self.lanes.refresh()
        await self.lanes.settle()


@pytest.fixture
def stage() -> Stage:
    return Stage(ManualClock())


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_an_empty_catalog_serves_nothing(stage: Stage) -> None:
    await stage.look()

    assert stage.lanes.names() == []
    assert await stage.lanes.ready() == {}
    with pytest.raises(ModelNotFound, match="'cats'"):
        stage.lanes.get("cats")


async def test_a_new_model_is_loaded_and_then_served(stage: Stage) -> None:
    await stage.look()
    stage.catalog.put(version("1"))
    await stage.look()

    assert stage.lanes.names() == ["cats"]
    assert stage.lanes.get("cats").contract == version("1")
    assert stage.backend.loads == [("cats", "1")]
    assert await stage.lanes.ready() == {"cats": True}


async def test_what_is_served_is_not_loaded_again(stage: Stage) -> None:
    stage.catalog.put(version("1"))
    for _ in range(3):
        await stage.look()

    assert stage.backend.loads == [("cats", "1")]
    assert len(stage.detectors) == 1


async def test_a_new_version_takes_the_old_ones_place(stage: Stage) -> None:
    stage.catalog.put(version("1"))
    await stage.look()
    stage.catalog.put(version("2"))
    await stage.look()
    await turns()

    assert stage.lanes.get("cats").contract == version("2")
    assert [detector.closed for detector in stage.detectors] == [True, False]


async def test_a_request_ends_on_the_lane_it_began_with(stage: Stage) -> None:
    stage.catalog.put(version("1"))
    await stage.look()
    lane = stage.lanes.get("cats")
    with lane.in_use():
        stage.catalog.put(version("2"))
        await stage.look()
        await turns()
        assert stage.lanes.get("cats") is not lane
        assert not stage.detectors[0].closed
    await turns()

    assert stage.detectors[0].closed


async def test_a_lane_stays_open_for_the_last_of_several_requests(stage: Stage) -> None:
    stage.catalog.put(version("1"))
    await stage.look()
    lane = stage.lanes.get("cats")
    first, second = lane.in_use(), lane.in_use()
    first.__enter__()
    second.__enter__()
    del stage.catalog.models["cats"]
    await stage.look()

    first.__exit__(None, None, None)
    await turns()
    assert not stage.detectors[0].closed
    second.__exit__(None, None, None)
    await turns()
    assert stage.detectors[0].closed


async def test_the_old_version_is_served_while_the_new_one_does_not_load(stage: Stage) -> None:
    stage.catalog.put(version("1"))
    await stage.look()
    stage.backend.broken["cats"] = "out of memory"
    stage.catalog.put(version("2"))
    await stage.look()

    assert stage.lanes.get("cats").contract == version("1")


async def test_a_model_that_is_gone_is_unloaded_once_others_had_time_to_notice(stage: Stage) -> None:
    stage.catalog.put(version("1"))
    await stage.look()
    del stage.catalog.models["cats"]
    await stage.look()
    with pytest.raises(ModelNotFound):
        stage.lanes.get("cats")
    assert stage.backend.unloads == []

    stage.clock.advance(UNLOAD_AFTER_SECONDS)
    await stage.look()
    await stage.look()

    assert stage.backend.unloads == ["cats"]


async def test_a_model_that_comes_back_in_time_is_not_unloaded(stage: Stage) -> None:
    stage.catalog.put(version("1"))
    await stage.look()
    del stage.catalog.models["cats"]
    await stage.look()
    stage.catalog.put(version("1"))
    stage.clock.advance(UNLOAD_AFTER_SECONDS)
    await stage.look()

    assert stage.backend.unloads == []
    assert stage.lanes.names() == ["cats"]


async def test_a_refused_model_says_why(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    stage.catalog.refused["masks"] = "it is for segmentation"
    await stage.look()
    await stage.look()

    assert stage.lanes.all_names() == ["masks"]
    with pytest.raises(
        ModelRefused, match="'masks' cannot be served by this gateway: it is for segm"
    ) as caught:
        stage.lanes.get("masks")
    assert (caught.value.code, caught.value.status) == ("model_not_found", 404)
    assert [record.message for record in caplog.records] == ["refused"]  # once, not every second


async def test_a_model_that_does_not_load_is_tried_ever_more_seldom(stage: Stage) -> None:
    stage.catalog.put(version("1"))
    stage.backend.broken["cats"] = "no such operator"
    stage.catalog.put(version("1", "dogs"))
    await stage.look()
    with pytest.raises(BackendUnavailable, match="did not load"):
        stage.lanes.get("cats")
    assert stage.lanes.names() == ["dogs"]

    tries = []
    for second in range(200):
        before = len(stage.backend.loads)
        await stage.look()
        if len(stage.backend.loads) > before:
            tries.append(second)
        stage.clock.advance(1.0)

    pauses = np.diff(tries).tolist()
    assert tries[0] == FIRST_RETRY_SECONDS
    assert pauses[:5] == [2, 4, 8, 16, 32]
    assert max(pauses) == LAST_RETRY_SECONDS


async def test_a_model_that_did_not_load_is_tried_at_once_when_it_changes(stage: Stage) -> None:
    stage.catalog.put(version("1"))
    stage.backend.broken["cats"] = "no such operator"
    await stage.look()
    stage.backend.broken.clear()
    stage.catalog.put(version("2"))
    await stage.look()

    assert stage.lanes.get("cats").contract == version("2")


async def test_a_server_that_is_away_is_asked_at_every_look(stage: Stage) -> None:
    """What it lost when it was started again is loaded again as soon as it is back."""
    stage.catalog.put(version("1"))
    await stage.look()
    stage.backend.unavailable.add("cats")
    stage.clock.advance(READY_FOR_SECONDS)
    for _ in range(3):
        await stage.look()
    assert await stage.lanes.ready() == {"cats": False}
    stage.backend.unavailable.clear()
    await stage.look()

    assert await stage.lanes.ready() == {"cats": True}
    assert len(stage.backend.loads) == 4
    assert len(stage.detectors) == 1


async def test_a_model_that_loads_slowly_holds_up_no_other(stage: Stage) -> None:
    gate, begun = asyncio.Event(), asyncio.Event()
    load = stage.backend.load

    async def slowly(contract: ModelContract) -> None:
        if contract.name == "cats":
            begun.set()
            await gate.wait()
        await load(contract)

    stage.backend.load = slowly  # type: ignore[method-assign]  # the one call of this twin that takes its time
    stage.catalog.put(version("1"))
    await stage.lanes.refresh()
    await begun.wait()
    with pytest.raises(BackendUnavailable, match="is being loaded"):
        stage.lanes.get("cats")
    stage.catalog.put(version("1", "dogs"))
    await stage.lanes.refresh()
    await asyncio.wait([stage.lanes._busy["dogs"]])
    assert stage.lanes.names() == ["dogs"]
    gate.set()
    await stage.lanes.settle()

    assert stage.lanes.names() == ["cats", "dogs"]
    assert stage.backend.loads == [("dogs", "1"), ("cats", "1")]


async def test_a_repository_that_cannot_be_looked_through_leaves_what_is_served(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.catalog.put(version("1"))
    await stage.look()
    failed, looked_again = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    scan = stage.catalog.scan

    def failing_once() -> CatalogScan:
        if not failed.is_set():
            failed.set()
            raise OSError("the disk is away")
        loop.call_soon_threadsafe(looked_again.set)
        return scan()

    stage.catalog.scan = failing_once  # type: ignore[method-assign]  # a disk that fails once
    run = asyncio.create_task(stage.lanes.run())
    await looked_again.wait()
    run.cancel()
    await asyncio.wait([run])

    assert "could not be looked through" in caplog.records[-1].message
    assert stage.lanes.names() == ["cats"]


async def test_closing_waits_for_the_requests_under_way(stage: Stage) -> None:
    stage.catalog.put(version("1"))
    await stage.look()
    with stage.lanes.get("cats").in_use():
        closing = asyncio.create_task(stage.lanes.close())
        await turns()
        assert not closing.done()
    await closing

    assert stage.detectors[0].closed
    assert stage.lanes.names() == []


async def test_what_is_refused_as_it_lies_there_now_is_served_on(stage: Stage) -> None:
    stage.catalog.put(version("1"))
    await stage.look()
    stage.catalog.models.clear()
    stage.catalog.refused["cats"] = "config.pbtxt cannot be read"
    stage.clock.advance(UNLOAD_AFTER_SECONDS + 1)
    await stage.look()

    assert stage.lanes.get("cats").contract == version("1")
    assert stage.backend.unloads == []


async def test_nothing_is_unloaded_under_a_request(stage: Stage) -> None:
    stage.catalog.put(version("1"))
    await stage.look()
    with stage.lanes.get("cats").in_use():
        stage.catalog.models.clear()
        await stage.look()
        stage.clock.advance(UNLOAD_AFTER_SECONDS + 1)
        await stage.look()
        assert stage.backend.unloads == []
    await turns()
    stage.clock.advance(UNLOAD_AFTER_SECONDS)
    await stage.look()

    assert stage.backend.unloads == ["cats"]


async def test_before_the_first_look_a_model_may_be_there(stage: Stage) -> None:
    with pytest.raises(BackendUnavailable):
        stage.lanes.get("cats")
    await stage.lanes.start()
    with pytest.raises(ModelNotFound):
        stage.lanes.get("cats")


async def test_a_model_without_a_lane_is_on_its_way_while_the_server_is_away(stage: Stage) -> None:
    stage.backend.unavailable.add("cats")
    stage.catalog.put(version("1"))
    await stage.look()

    assert stage.lanes.names() == []
    assert stage.lanes.all_names() == ["cats"]
    with pytest.raises(BackendUnavailable, match="is being loaded"):
        stage.lanes.get("cats")


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param(version("1", of="dog", sha256="a"), id="classes"),
        pytest.param(version("1", anchors=2, sha256="a"), id="tensors"),
        pytest.param(version("1", sha256="b"), id="file"),
    ],
)
async def test_a_version_is_not_exchanged_under_its_number(stage: Stage, changed: ModelContract) -> None:
    """The server would answer by its number with a model that the lane cannot read."""
    stage.catalog.put(version("1", sha256="a"))
    await stage.look()
    stage.catalog.put(changed)
    await stage.look()
    assert stage.backend.loads == [("cats", "1")]
    assert stage.lanes.get("cats").contract == version("1", sha256="a")
    with pytest.raises(BackendUnavailable):  # there is nothing else to go on with
        await stage.lanes.successor(stage.lanes.get("cats"), within_seconds=0)

    stage.backend.loaded["cats"] = set()  # the server was started again, and knows only the new one
    await stage.lanes.refresh()
    await stage.lanes.settle()
    with pytest.raises(ModelRefused, match="version 1 has changed; publish it as another version"):
        stage.lanes.get("cats")


async def test_the_same_version_may_be_described_anew(stage: Stage) -> None:
    stage.catalog.put(version("1"))
    await stage.look()
    stage.catalog.put(version("1", sha256="a"))
    await stage.look()

    assert stage.lanes.get("cats").contract == version("1", sha256="a")


async def test_a_file_that_is_not_the_contracts_is_refused_before_it_is_loaded(stage: Stage) -> None:
    stage.catalog.put(version("1"))
    stage.catalog.false["cats"] = "its model file is not the one that metadata.json names"
    await stage.look()
    assert stage.backend.loads == []
    with pytest.raises(ModelRefused, match="not the one that metadata"):
        stage.lanes.get("cats")

    stage.catalog.false.clear()
    stage.clock.advance(FIRST_RETRY_SECONDS)
    await stage.look()
    assert stage.lanes.names() == ["cats"]


@pytest.mark.parametrize(
    ("error", "seen"),
    [(OperatorError("too large"), ModelRefused), (RuntimeError("oh"), BackendUnavailable)],
)
async def test_the_old_version_stays_where_no_detector_can_be_made_for_the_new_one(
    stage: Stage, error: Exception, seen: type[Exception]
) -> None:
    stage.unmakeable["dogs"] = error
    stage.catalog.put(version("1", "dogs"))
    stage.catalog.put(version("1"))
    await stage.look()
    with pytest.raises(seen):
        stage.lanes.get("dogs")
    stage.unmakeable["cats"] = error
    stage.catalog.put(version("2"))
    await stage.look()

    assert stage.lanes.get("cats").contract == version("1")
    assert ("cats", "2") not in stage.backend.loads
    assert not stage.detectors[0].closed


@pytest.mark.parametrize(
    ("error", "tries"),
    [(BackendUnavailable(), 4), (DeadlineExceeded(), 4), (Overloaded(), 4), (InternalError(), 1)],
)
async def test_only_what_passes_by_itself_is_tried_at_every_look(
    stage: Stage, error: Exception, tries: int
) -> None:
    loads: list[str] = []

    async def failing(contract: ModelContract) -> None:
        loads.append(contract.name)
        raise error

    stage.backend.load = failing  # type: ignore[method-assign]  # a server in a state of its own
    stage.catalog.put(version("1"))
    for _ in range(4):
        await stage.look()

    assert len(loads) == tries


async def test_readiness_is_asked_for_now_and_then(stage: Stage) -> None:
    asked: list[str] = []
    is_ready = stage.backend.is_ready

    async def counted(contract: ModelContract) -> bool:
        asked.append(contract.name)
        return await is_ready(contract)

    stage.backend.is_ready = counted  # type: ignore[method-assign]  # counts
    stage.catalog.put(version("1"))
    for _ in range(8):
        await stage.look()
        stage.clock.advance(READY_FOR_SECONDS / 4)

    assert len(asked) == 2


async def test_who_waits_for_a_successor_gets_it_when_it_comes(stage: Stage) -> None:
    stage.catalog.put(version("1"))
    await stage.look()
    lane = stage.lanes.get("cats")
    waiting = asyncio.create_task(stage.lanes.successor(lane, within_seconds=30))
    await turns()
    assert not waiting.done()
    stage.catalog.put(version("2"))
    await stage.look()
    assert (await waiting).contract == version("2")

    stage.catalog.models.clear()
    await stage.look()
    with pytest.raises(ModelNotFound):
        await stage.lanes.successor(lane, within_seconds=30)


async def test_an_unloading_that_could_not_begin_is_tried_again(stage: Stage) -> None:
    stage.catalog.put(version("1"))
    await stage.look()
    stage.catalog.models.clear()
    await stage.look()
    stage.clock.advance(UNLOAD_AFTER_SECONDS)
    done = asyncio.Event()

    async def busy() -> None:
        await done.wait()

    stage.lanes._begin("cats", busy())
    await stage.lanes.refresh()
    assert stage.backend.unloads == []
    done.set()
    await stage.lanes.settle()
    await stage.look()

    assert stage.backend.unloads == ["cats"]


async def test_a_disk_that_does_not_answer_holds_one_thread_and_no_start(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("serving.lanes.START_SECONDS", 0.05)
    monkeypatch.setattr("serving.lanes.SCAN_SECONDS", 0.02)
    gate, scans, scan = threading.Event(), [], stage.catalog.scan

    def hanging() -> CatalogScan:
        scans.append(1)
        gate.wait(30)
        return scan()

    stage.catalog.scan = hanging  # type: ignore[method-assign]  # a disk that hangs
    stage.catalog.put(version("1"))
    try:
        for _ in range(3):
            await stage.lanes.start()
        with pytest.raises(BackendUnavailable, match="not known yet"):
            stage.lanes.get("cats")
        assert len(scans) == 1
        assert [record.message for record in caplog.records] == [
            "the model repository could not be looked through"
        ]
    finally:
        gate.set()
    async with asyncio.timeout(10):
        while not stage.lanes.names():
            await stage.lanes.start()


async def test_closing_does_not_wait_for_ever(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stage.lanes, "_request_timeout_seconds", 0.01)
    stage.catalog.put(version("1"))
    await stage.look()
    with stage.lanes.get("cats").in_use():
        await stage.lanes.close()

    assert caplog.records[-1].message == "still in use at the end"


async def test_the_first_request_after_the_start_is_answered() -> None:
    """A replica takes requests as soon as its application has started."""
    picture = encode(np.full((64, 64, 3), 255, np.uint8))
    async with running_world(make_tier()) as world:
        world.lanes._lanes.clear()  # as in a process that has just begun
        async with world.app.router.lifespan_context(world.app):
            response = await world.client.post(
                "/v1/infer/shapes",
                content=picture,
                headers={**world.bearer(), "Content-Type": "image/jpeg"},
            )

    assert response.status_code == 200
