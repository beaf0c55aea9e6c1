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
from serving.errors import BackendUnavailable, ModelNotFound, ModelRefused
from serving.lanes import FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS, UNLOAD_AFTER_SECONDS, Lanes
from serving.ports import CatalogModel, CatalogScan
from tests.support.contracts import metadata
from tests.support.tiers import make_tier
from tests.support.world import encode, running_world


def version(number: str, name: str = "cats") -> ModelContract:
    raw = metadata(name, side=4, anchors=1, classes=["cat"])
    raw["model_info"]["version"] = number
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
        self.lanes = Lanes(self.catalog, self.backend, self._make, clock)

    def _make(self, model: CatalogModel) -> Detector:
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
    await turns()
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
