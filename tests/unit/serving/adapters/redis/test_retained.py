from __future__ import annotations

from collections.abc import Sequence

import pytest

from serving.adapters.journal_record import JournalRecord
from serving.adapters.memory.clock import ManualClock
from serving.adapters.redis import retained as retained_module
from serving.adapters.redis.keyspace import partition_of
from serving.adapters.redis.meter import Appended
from serving.adapters.redis.pulse import Pulse, StreamId
from serving.adapters.redis.retained import CHUNK_EVENTS, MAX_SECONDS, RetainedEvents
from serving.adapters.redis.trouble import unavailable
from serving.domain.idempotency import IdempotencyKey
from serving.domain.inference import RenderedAnswer
from serving.errors import AccountsUnavailable
from tests.support.usage_events import make_event

KEY = "key_1"
PARTITION = partition_of(KEY)
OTHER_KEY = next(key for key in map("key_{}".format, range(2, 99)) if partition_of(key) != PARTITION)


def record(number: int, key_id: str = KEY) -> JournalRecord:
    return JournalRecord(make_event(f"req_{number}", key_id=key_id))


def pulse(consumed_below: int = 0, *, epoch: str = "e1", server: str = "s1", key_id: str = KEY) -> Pulse:
    return Pulse(partition_of(key_id), epoch, server, (consumed_below, 0), 0)


class Stream:
    """A stream that holds what is put into it, and gives ids that count up."""

    def __init__(self, retained: RetainedEvents, *, epoch: str = "e1", first_id: int = 1) -> None:
        self.entries: dict[StreamId, str] = {}
        self.asked: list[int] = []
        self.failures = 0
        self.epoch = epoch
        self._retained = retained
        self._next_id = first_id

    async def append(self, record: JournalRecord) -> None:
        if self.failures:
            self.failures -= 1
            raise unavailable("down")
        self.entries[self._next_id, 0] = record.event.request_id
        self._retained.keep(record, Appended(self.epoch, f"{self._next_id}-0"))
        self._next_id += 1

    async def absent(self, partition: int, ids: Sequence[StreamId]) -> set[StreamId]:
        self.asked.append(len(ids))
        return {id_ for id_ in ids if id_ not in self.entries}


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def retained(clock: ManualClock) -> RetainedEvents:
    return RetainedEvents(clock)


async def filled(retained: RetainedEvents, count: int) -> Stream:
    stream = Stream(retained)
    retained.follow([pulse()])
    for number in range(1, count + 1):
        await stream.append(record(number))
    return stream


async def test_what_the_ledger_has_is_forgotten(retained: RetainedEvents) -> None:
    stream = await filled(retained, 5)
    retained.follow([pulse(4)])
    assert len(retained) == 2
    retained.follow([pulse(6)])
    assert len(retained) == 0
    assert await retained.restore(stream.append, stream.absent) == 0
    assert stream.asked == []


async def test_a_flush_appends_again_what_the_ledger_had_not_confirmed(retained: RetainedEvents) -> None:
    await filled(retained, 4)
    retained.follow([pulse(3)])
    flushed = Stream(retained, epoch="e2", first_id=100)
    retained.follow([pulse(0, epoch="e2")])
    assert await retained.restore(flushed.append, flushed.absent) == 2
    assert list(flushed.entries.values()) == ["req_3", "req_4"]
    assert flushed.asked == []  # ids of another epoch mean nothing in this one
    assert len(retained) == 2
    retained.follow([pulse(102, epoch="e2")])
    assert len(retained) == 0


async def test_another_server_is_asked_what_it_has_and_gets_the_rest(retained: RetainedEvents) -> None:
    stream = await filled(retained, 3 * CHUNK_EVENTS)
    lost = [id_ for id_ in stream.entries if id_[0] % 3 == 0]
    for id_ in lost:
        del stream.entries[id_]
    retained.follow([pulse(0, server="s2")])
    assert await retained.restore(stream.append, stream.absent) == len(lost)
    assert sorted(stream.entries.values()) == sorted(f"req_{n}" for n in range(1, 3 * CHUNK_EVENTS + 1))
    assert stream.asked == [CHUNK_EVENTS] * 3
    assert len(retained) == 3 * CHUNK_EVENTS
    retained.follow([pulse(10_000, server="s2")])
    assert len(retained) == 0


async def test_a_restart_that_lost_nothing_appends_nothing(retained: RetainedEvents) -> None:
    stream = await filled(retained, 3)
    retained.follow([pulse(0, server="s2")])
    assert await retained.restore(stream.append, stream.absent) == 0
    assert len(stream.entries) == 3


async def test_what_went_wrong_half_way_is_tried_again(retained: RetainedEvents) -> None:
    await filled(retained, 3)
    retained.follow([pulse(0, epoch="e2")])
    flushed = Stream(retained, epoch="e2", first_id=100)
    flushed.failures = 1
    with pytest.raises(AccountsUnavailable):
        await retained.restore(flushed.append, flushed.absent)
    await retained.restore(flushed.append, flushed.absent)
    assert set(flushed.entries.values()) == {"req_1", "req_2", "req_3"}


async def test_an_event_of_the_old_epoch_that_arrives_late_is_no_event_of_the_new_one(
    retained: RetainedEvents,
) -> None:
    await filled(retained, 0)
    retained.follow([pulse(0, epoch="e2")])
    retained.keep(record(7), Appended("e1", "50-0"))
    retained.follow([pulse(100, epoch="e2")])
    flushed = Stream(retained, epoch="e2", first_id=100)
    assert await retained.restore(flushed.append, flushed.absent) == 1


async def test_partitions_are_apart(retained: RetainedEvents) -> None:
    retained.follow([pulse(), pulse(key_id=OTHER_KEY)])
    retained.keep(record(1), Appended("e1", "1-0"))
    retained.keep(record(2, OTHER_KEY), Appended("e1", "1-0"))
    retained.follow([pulse(2)])
    assert len(retained) == 1
    flushed = Stream(retained, epoch="e2", first_id=100)
    retained.follow([pulse(2, epoch="e2", key_id=OTHER_KEY)])
    await retained.restore(flushed.append, flushed.absent)
    assert list(flushed.entries.values()) == ["req_2"]


async def test_the_oldest_of_too_many_go_whether_doubtful_or_not(clock: ManualClock) -> None:
    retained = RetainedEvents(clock, max_events=3)
    stream = await filled(retained, 5)
    assert len(retained) == 3
    retained.follow([pulse(0, epoch="e2")])
    retained.keep(record(6, OTHER_KEY), Appended("e1", "6-0"))
    assert len(retained) == 3
    flushed = Stream(retained, epoch="e2", first_id=100)
    retained.follow([pulse(0, epoch="e2")])
    await retained.restore(flushed.append, stream.absent)
    assert "req_5" in flushed.entries.values()
    assert "req_2" not in flushed.entries.values()


async def test_what_is_too_old_goes(retained: RetainedEvents, clock: ManualClock) -> None:
    await filled(retained, 2)
    clock.advance(MAX_SECONDS)
    retained.keep(record(3), Appended("e1", "3-0"))
    retained.follow([pulse()])
    assert len(retained) == 3
    clock.advance(1)
    retained.follow([pulse()])
    assert len(retained) == 1


async def test_answers_beyond_their_bound_are_not_kept_but_their_events_are(
    retained: RetainedEvents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retained_module, "MAX_ANSWERS_BYTES", 25)
    retained.follow([pulse()])
    for number in (1, 2, 3):
        answered = JournalRecord(
            make_event(f"req_{number}"), IdempotencyKey("again", "f"), RenderedAnswer(b"x" * 10, {})
        )
        retained.keep(answered, Appended("e1", f"{number}-0"))
    kept: list[JournalRecord] = []

    async def append(record: JournalRecord) -> None:
        kept.append(record)

    async def absent(partition: int, ids: Sequence[StreamId]) -> set[StreamId]:
        return set(ids)

    retained.follow([pulse(server="s2")])
    await retained.restore(append, absent)
    assert [record.answer is not None for record in kept] == [True, True, False]
    assert kept[2].idempotency is None
