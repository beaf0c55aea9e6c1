"""Time is the event loop's, and virtual: it jumps to the next timer when nothing else is left to do."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import UTC, datetime
from functools import wraps
from typing import Any, ParamSpec

import pytest

from serving.errors import (
    BackendUnavailable,
    DeadlineExceeded,
    InternalError,
    Overloaded,
    PictureUndecodable,
    VisiongateError,
)
from serving.vision.batcher import Batched, Batcher

P = ParamSpec("P")


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Runs as fast as it can; a timer in the future makes the clock jump there."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        select = self._selector.select  # type: ignore[attr-defined]  # asyncio's own name, stable since 3.4

        def jump_instead_of_waiting(timeout: float | None) -> Any:
            if timeout is None:
                raise AssertionError("the test waits for something that never happens")
            self._now += timeout
            return select(0)

        self._selector.select = jump_instead_of_waiting  # type: ignore[attr-defined]  # as above

    def time(self) -> float:
        return self._now


class LoopClock:
    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.monotonic(), UTC)


class Server:
    """A `run` whose batches end when the test says so."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.cancelled: list[list[str]] = []
        self._ends: list[asyncio.Future[Sequence[str | VisiongateError]]] = []

    async def run(self, items: Sequence[str]) -> Sequence[str | VisiongateError]:
        batch = list(items)
        self.batches.append(batch)
        end: asyncio.Future[Sequence[str | VisiongateError]] = asyncio.get_running_loop().create_future()
        self._ends.append(end)
        try:
            return await end
        except asyncio.CancelledError:
            self.cancelled.append(batch)
            raise

    def finish(self, batch: int, results: Sequence[str | VisiongateError] | None = None) -> None:
        self._ends[batch].set_result(
            [item.upper() for item in self.batches[batch]] if results is None else results
        )

    def fail(self, batch: int, error: BaseException) -> None:
        self._ends[batch].set_exception(error)


def in_virtual_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            runner.run(test(*args, **kwargs))

    return run


def batcher_of(
    run: Callable[[Sequence[str]], Awaitable[Sequence[str | VisiongateError]]],
    *,
    max_batch_size: int = 4,
    max_batches_in_flight: int = 1,
    max_queue_size: int = 8,
) -> Batcher[str, str]:
    return Batcher(
        run,
        max_batch_size=max_batch_size,
        max_batches_in_flight=max_batches_in_flight,
        max_queue_size=max_queue_size,
        clock=LoopClock(),
    )


Submitted = asyncio.Task[Batched[str]]


def submit(
    batcher: Batcher[str, str], items: str, *, deadline: float = 100.0, priority: int = 1
) -> list[Submitted]:
    """One task a letter."""
    return [asyncio.create_task(batcher.submit(item, deadline=deadline, priority=priority)) for item in items]


async def settle() -> None:
    """Let everything happen that needs no time."""
    for _ in range(20):
        await asyncio.sleep(0)


async def results(tasks: Sequence[Submitted]) -> list[str]:
    return [batched.result for batched in await asyncio.gather(*tasks)]


@in_virtual_time
async def test_one_item_leaves_at_once_when_idle() -> None:
    server = Server()
    (task,) = submit(batcher_of(server.run), "a")
    await settle()
    server.finish(0)

    assert await task == Batched("A", queue_seconds=0.0, batch_size=1)


@in_virtual_time
async def test_items_that_arrive_together_share_a_batch() -> None:
    server = Server()
    tasks = submit(batcher_of(server.run), "abc")
    await settle()
    server.finish(0)

    assert await results(tasks) == ["A", "B", "C"]
    assert server.batches == [["a", "b", "c"]]
    assert {task.result().batch_size for task in tasks} == {3}


@in_virtual_time
async def test_what_arrives_while_batches_are_in_flight_gathers_and_leaves_in_order() -> None:
    server = Server()
    batcher = batcher_of(server.run)
    first = submit(batcher, "a")
    await settle()
    await asyncio.sleep(2.0)
    gathered = submit(batcher, "bcdefg")
    await asyncio.sleep(1.5)
    assert server.batches == [["a"]]

    server.finish(0)
    await settle()
    assert server.batches[1:] == [["b", "c", "d", "e"]]
    server.finish(1)
    await settle()
    assert server.batches[2:] == [["f", "g"]]
    server.finish(2)

    assert await results(first + gathered) == list("ABCDEFG")
    assert [task.result().queue_seconds for task in gathered] == [1.5] * 6
    assert [task.result().batch_size for task in gathered] == [4] * 4 + [2] * 2


@in_virtual_time
async def test_no_more_batches_are_in_flight_than_allowed() -> None:
    server = Server()
    batcher = batcher_of(server.run, max_batch_size=1, max_batches_in_flight=2)
    tasks = submit(batcher, "abc")
    await settle()
    assert server.batches == [["a"], ["b"]]

    server.finish(1)
    await settle()
    assert server.batches == [["a"], ["b"], ["c"]]
    server.finish(0)
    server.finish(2)

    assert await results(tasks) == ["A", "B", "C"]


@in_virtual_time
async def test_a_full_queue_refuses_at_once_and_keeps_what_it_has() -> None:
    server = Server()
    batcher = batcher_of(server.run, max_queue_size=2)
    running = submit(batcher, "a")
    await settle()
    waiting = submit(batcher, "bc")
    await settle()

    with pytest.raises(Overloaded):
        await batcher.submit("d", deadline=100.0, priority=1)

    server.finish(0)
    await settle()
    server.finish(1)
    assert await results(running + waiting) == ["A", "B", "C"]


@in_virtual_time
async def test_an_idle_server_takes_more_than_the_queue_holds() -> None:
    server = Server()
    batcher = batcher_of(server.run, max_batch_size=2, max_batches_in_flight=3, max_queue_size=1)
    tasks = submit(batcher, "abcd")
    await settle()

    assert server.batches == [["a"], ["b"], ["c"]]
    for batch in range(3):
        server.finish(batch)
    await settle()
    server.finish(3)
    assert await results(tasks) == ["A", "B", "C", "D"]


@in_virtual_time
async def test_the_urgent_leave_first_and_equals_as_they_came() -> None:
    server = Server()
    batcher = batcher_of(server.run, max_batch_size=2)
    tasks = submit(batcher, "r", priority=1)
    await settle()
    for items, priority in (("xy", 3), ("m", 2), ("z", 3), ("abc", 1), ("n", 2)):
        tasks += submit(batcher, items, priority=priority)
    for batch in range(6):
        await settle()
        server.finish(batch)

    assert await results(tasks) == list("RXYMZABCN")
    assert server.batches == [["r"], ["a", "b"], ["c"], ["m", "n"], ["x", "y"], ["z"]]


@in_virtual_time
async def test_a_batch_holds_one_priority_even_where_it_has_room() -> None:
    """The urgent would be answered when the last of the others is."""
    server = Server()
    batcher = batcher_of(server.run, max_batches_in_flight=2)
    tasks = submit(batcher, "x", priority=3) + submit(batcher, "a", priority=1)
    await settle()
    assert server.batches == [["a"], ["x"]]

    server.finish(0)
    server.finish(1)
    assert await results(tasks) == ["X", "A"]


@in_virtual_time
async def test_what_is_less_urgent_takes_no_place_of_what_is_more() -> None:
    """Each letter is a batch; with places for two of a priority and those above it."""
    server = Server()
    batcher = batcher_of(server.run, max_batch_size=1, max_batches_in_flight=2)
    tasks = submit(batcher, "xyz", priority=3)
    await settle()
    assert server.batches == [["x"], ["y"]]

    tasks += submit(batcher, "mno", priority=2)
    await settle()
    assert server.batches[2:] == [["m"], ["n"]]
    tasks += submit(batcher, "abc", priority=1)
    await settle()
    assert server.batches[4:] == [["a"], ["b"]]

    for batch in (0, 1, 2):  # two of the more urgent are still under way: nothing for the others
        server.finish(batch)
        await settle()
    assert server.batches[6:] == []
    for batch, next_one in ((3, []), (4, ["c"]), (5, ["o"]), (6, ["z"])):
        server.finish(batch)
        await settle()
        assert [item for (item,) in server.batches[6:]][-1:] == next_one
    for batch in (7, 8):
        server.finish(batch)
    assert await results(tasks) == list("XYZMNOABC")


@in_virtual_time
async def test_in_a_full_queue_an_urgent_newcomer_takes_the_last_place_of_the_least_urgent() -> None:
    server = Server()
    batcher = batcher_of(server.run, max_batch_size=1, max_queue_size=4)
    running = submit(batcher, "r", priority=1)
    await settle()
    x, m, y, n = (
        submit(batcher, item, priority=of)[0] for item, of in (("x", 3), ("m", 2), ("y", 3), ("n", 2))
    )
    await settle()

    (a,) = submit(batcher, "a", priority=1)
    with pytest.raises(Overloaded):
        await y  # the last that came of the least urgent, and not x
    (o,) = submit(batcher, "o", priority=2)
    with pytest.raises(Overloaded):
        await x
    with pytest.raises(Overloaded):  # nobody is less urgent any more
        await batcher.submit("p", deadline=100.0, priority=2)
    with pytest.raises(Overloaded):
        await batcher.submit("z", deadline=100.0, priority=3)

    for batch in range(5):
        server.finish(batch)
        await settle()
    assert await results([*running, a, m, n, o]) == ["R", "A", "M", "N", "O"]
    assert server.batches == [["r"], ["a"], ["m"], ["n"], ["o"]]


@in_virtual_time
async def test_the_least_urgent_waits_until_its_deadline_while_the_urgent_fill_every_place() -> None:
    server = Server()
    batcher = batcher_of(server.run, max_batch_size=1)
    tasks = submit(batcher, "abc", priority=1)
    (late,) = submit(batcher, "x", priority=3, deadline=2.5)
    for batch in range(3):
        await asyncio.sleep(1.0)
        server.finish(batch)

    with pytest.raises(DeadlineExceeded):
        await late
    assert await results(tasks) == ["A", "B", "C"]
    assert server.batches == [["a"], ["b"], ["c"]]


@in_virtual_time
async def test_one_of_any_priority_can_leave_the_queue() -> None:
    server = Server()
    batcher = batcher_of(server.run, max_queue_size=2)
    tasks = submit(batcher, "r", priority=1)
    await settle()
    leaving = submit(batcher, "x", priority=3) + submit(batcher, "a", priority=1)
    await settle()
    for task in leaving:
        task.cancel()
    await settle()
    tasks += submit(batcher, "yz", priority=3)
    await settle()
    server.finish(0)
    await settle()
    server.finish(1)

    assert await results(tasks) == ["R", "Y", "Z"]
    assert server.batches == [["r"], ["y", "z"]]


@in_virtual_time
async def test_an_error_for_one_item_is_that_items_alone() -> None:
    server = Server()
    tasks = submit(batcher_of(server.run), "abc")
    await settle()
    server.finish(0, ["A", PictureUndecodable("b is broken"), "C"])

    answers = await asyncio.gather(*tasks, return_exceptions=True)

    assert isinstance(answers[1], PictureUndecodable)
    assert [answers[0], answers[2]] == [Batched("A", 0.0, 3), Batched("C", 0.0, 3)]


@in_virtual_time
async def test_our_own_error_of_a_batch_is_every_items() -> None:
    server = Server()
    batcher = batcher_of(server.run)
    tasks = submit(batcher, "ab")
    await settle()
    server.fail(0, BackendUnavailable())

    answers = await asyncio.gather(*tasks, return_exceptions=True)

    assert [type(answer) for answer in answers] == [BackendUnavailable] * 2
    after = submit(batcher, "c")
    await settle()
    server.finish(1)
    assert await results(after) == ["C"]


@pytest.mark.parametrize(
    ("answer", "logged"),
    [
        (RuntimeError("address of something"), "a batch of 2 failed"),
        (["A"], "a batch of 2 was answered with 1 results"),
        (["A", "B", "C"], "a batch of 2 was answered with 3 results"),
    ],
)
def test_trouble_of_run_is_logged_and_said_to_nobody(
    answer: RuntimeError | list[str], logged: str, caplog: pytest.LogCaptureFixture
) -> None:
    @in_virtual_time
    async def test() -> None:
        server = Server()
        tasks = submit(batcher_of(server.run), "ab")
        await settle()
        if isinstance(answer, RuntimeError):
            server.fail(0, answer)
        else:
            server.finish(0, answer)

        answers = await asyncio.gather(*tasks, return_exceptions=True)

        assert [type(each) for each in answers] == [InternalError] * 2
        assert "address" not in str(answers)

    with caplog.at_level(logging.ERROR, logger="serving.vision.batcher"):
        test()
    assert [record.getMessage() for record in caplog.records] == [logged]


@in_virtual_time
async def test_nobody_is_left_waiting_when_run_is_cancelled_from_inside() -> None:
    server = Server()
    (task,) = submit(batcher_of(server.run), "a")
    await settle()
    server.fail(0, asyncio.CancelledError())

    with pytest.raises(InternalError):
        await task


@in_virtual_time
async def test_a_client_that_leaves_the_queue_is_never_run() -> None:
    server = Server()
    batcher = batcher_of(server.run)
    tasks = submit(batcher, "a")
    await settle()
    tasks += submit(batcher, "bcd")
    await settle()
    tasks[2].cancel()
    await settle()
    server.finish(0)
    await settle()
    server.finish(1)

    assert server.batches == [["a"], ["b", "d"]]
    assert await results([tasks[0], tasks[1], tasks[3]]) == ["A", "B", "D"]
    assert tasks[2].cancelled()


@in_virtual_time
async def test_a_client_that_leaves_makes_room_in_the_queue() -> None:
    server = Server()
    batcher = batcher_of(server.run, max_queue_size=1)
    tasks = submit(batcher, "a")
    await settle()
    (leaving,) = submit(batcher, "b")
    await settle()
    leaving.cancel()
    await settle()
    tasks += submit(batcher, "c")
    await settle()
    server.finish(0)
    await settle()
    server.finish(1)

    assert await results(tasks) == ["A", "C"]


@in_virtual_time
async def test_a_running_batch_goes_on_for_those_who_stay() -> None:
    server = Server()
    leaving, staying = submit(batcher_of(server.run), "ab")
    await settle()
    leaving.cancel()
    await settle()
    server.finish(0)

    assert await results([staying]) == ["B"]
    assert server.cancelled == []


@in_virtual_time
async def test_a_running_batch_is_cancelled_when_everybody_left_and_its_place_is_free_again() -> None:
    server = Server()
    batcher = batcher_of(server.run)
    tasks = submit(batcher, "ab")
    await settle()
    waiting = submit(batcher, "c")
    await settle()
    for task in tasks:
        task.cancel()
    await settle()

    assert server.cancelled == [["a", "b"]]
    assert server.batches == [["a", "b"], ["c"]]
    server.finish(1)
    assert await results(waiting) == ["C"]


@in_virtual_time
async def test_a_deadline_that_has_passed_is_not_even_queued() -> None:
    server = Server()
    batcher = batcher_of(server.run)
    await asyncio.sleep(5.0)

    with pytest.raises(DeadlineExceeded):
        await batcher.submit("a", deadline=5.0, priority=1)
    await settle()
    assert server.batches == []


@in_virtual_time
async def test_a_deadline_is_kept_in_the_queue_and_its_item_never_run() -> None:
    server = Server()
    batcher = batcher_of(server.run)
    running = submit(batcher, "a")
    await settle()
    (late,) = submit(batcher, "b", deadline=3.0)
    with pytest.raises(DeadlineExceeded):
        await late
    assert asyncio.get_running_loop().time() == pytest.approx(3.0)

    server.finish(0)
    assert await results(running) == ["A"]
    await settle()
    assert server.batches == [["a"]]


@in_virtual_time
async def test_a_deadline_is_kept_while_running_and_the_others_get_their_answer() -> None:
    server = Server()
    batcher = batcher_of(server.run)
    (late,) = submit(batcher, "a", deadline=3.0)
    (patient,) = submit(batcher, "b", deadline=9.0)
    with pytest.raises(DeadlineExceeded):
        await late
    assert asyncio.get_running_loop().time() == pytest.approx(3.0)
    assert server.cancelled == []

    server.finish(0)
    assert await results([patient]) == ["B"]


@in_virtual_time
async def test_a_batch_that_is_late_for_everybody_is_cancelled() -> None:
    server = Server()
    tasks = submit(batcher_of(server.run), "ab", deadline=3.0)
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    await settle()

    assert [type(answer) for answer in answers] == [DeadlineExceeded] * 2
    assert server.cancelled == [["a", "b"]]


@in_virtual_time
async def test_a_place_that_frees_at_the_deadline_does_not_run_the_item() -> None:
    server = Server()
    batcher = batcher_of(server.run)
    running = submit(batcher, "a")
    await settle()
    asyncio.get_running_loop().call_at(3.0, server.finish, 0)
    (late,) = submit(batcher, "b", deadline=3.0)

    with pytest.raises(DeadlineExceeded):
        await late
    assert await results(running) == ["A"]
    await settle()
    assert server.batches == [["a"]]


@in_virtual_time
async def test_close_answers_what_was_accepted_and_refuses_the_rest() -> None:
    server = Server()
    batcher = batcher_of(server.run)
    tasks = submit(batcher, "a")
    await settle()
    tasks += submit(batcher, "bc")
    await settle()
    closing = asyncio.create_task(batcher.close())
    await settle()
    with pytest.raises(BackendUnavailable):
        await batcher.submit("d", deadline=100.0, priority=1)
    server.finish(0)
    await settle()
    assert not closing.done()
    server.finish(1)
    await closing

    assert await results(tasks) == ["A", "B", "C"]


@in_virtual_time
async def test_close_of_an_idle_batcher_is_immediate() -> None:
    await batcher_of(Server().run).close()


@in_virtual_time
async def test_an_answered_item_is_let_go_of_without_the_garbage_collector() -> None:
    """Items are decoded pictures: some megabytes each, that must not wait for a collection."""

    class Picture:
        pass

    async def run(items: Sequence[Picture]) -> Sequence[str]:
        return ["done"] * len(items)

    batcher: Batcher[Picture, str] = Batcher(
        run, max_batch_size=4, max_batches_in_flight=1, max_queue_size=4, clock=LoopClock()
    )
    gc.disable()
    try:
        picture = Picture()
        reference = weakref.ref(picture)
        await batcher.submit(picture, deadline=10.0, priority=1)
        del picture
        await settle()
        assert reference() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("bound", ["max_batch_size", "max_batches_in_flight", "max_queue_size"])
def test_a_bound_of_zero_is_refused(bound: str) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        batcher_of(Server().run, **{bound: 0})
