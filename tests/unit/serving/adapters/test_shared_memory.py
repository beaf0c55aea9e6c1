from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from serving.adapters.shared_memory import SharedSlots, allocate, is_orphan

FOLDER = Path("/dev/shm")
HOLD_SLOTS = """
import sys
from serving.adapters.shared_memory import SharedSlots
slots = SharedSlots(slots=1, slot_bytes=4096)
print(slots.name, flush=True)
sys.stdin.read()
"""


def test_there_are_as_many_slots_as_asked_for_each_with_memory_of_its_own() -> None:
    slots = SharedSlots(slots=3, slot_bytes=100)

    taken = [slot for slot in (slots.take(), slots.take(), slots.take()) if slot is not None]
    for slot in taken:
        slot.memory[:] = slot.number + 1

    assert slots.take() is None
    assert [slot.memory.tolist() for slot in taken] == [[slot.number + 1] * 100 for slot in taken]
    assert sorted((FOLDER / slots.name).read_bytes()) == [1] * 100 + [2] * 100 + [3] * 100
    slots.close()


def test_a_slot_that_came_back_is_the_next_to_leave() -> None:
    slots = SharedSlots(slots=2, slot_bytes=10)
    one, other = slots.take(), slots.take()
    assert one is not None
    assert other is not None

    slots.give_back(one)

    assert slots.take() is one
    assert slots.take() is None
    slots.close()


def test_a_slot_comes_back_once_only() -> None:
    slots = SharedSlots(slots=1, slot_bytes=10)
    slot = slots.take()
    assert slot is not None
    slots.give_back(slot)

    with pytest.raises(KeyError):
        slots.give_back(slot)

    slots.close()


def test_an_array_is_known_by_where_it_lies() -> None:
    slots = SharedSlots(slots=3, slot_bytes=12)
    slot = slots.take()
    assert slot is not None
    pixels = slot.memory.reshape(2, 2, 3)

    assert slots.offset_of(pixels) == slot.number * 12
    assert slots.offset_of(pixels[1:]) == slot.number * 12 + 6
    assert slots.offset_of(pixels[:0]) is None
    assert slots.offset_of(pixels[:, :, ::-1]) is None
    assert slots.offset_of(pixels.copy()) is None
    slots.close()


def test_the_file_is_its_owners_alone_and_gone_after_the_end() -> None:
    slots = SharedSlots(slots=1, slot_bytes=10)
    slot = slots.take()
    assert slot is not None
    assert (FOLDER / slots.name).stat().st_mode & 0o777 == 0o600

    slots.close()
    slots.close()

    assert not (FOLDER / slots.name).exists()
    assert slots.take() is None
    assert slots.offset_of(slot.memory) is None
    slot.memory[:] = 1  # whoever still has it may go on: the memory goes when the last array does
    slots.give_back(slot)
    assert slots.take() is None


def test_what_a_dead_process_left_is_removed_and_what_a_living_one_has_is_not() -> None:
    living = SharedSlots(slots=1, slot_bytes=10)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_SLOTS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        left = FOLDER / other.stdout.readline().strip()
        SharedSlots(slots=1, slot_bytes=10).close()
        assert left.is_file()
        os.kill(other.pid, signal.SIGKILL)
    assert left.is_file()

    SharedSlots(slots=1, slot_bytes=10).close()

    assert not left.exists()
    assert (FOLDER / living.name).exists()
    assert not is_orphan(living.name)
    living.close()
    assert is_orphan(living.name)
    assert not is_orphan("somebody-elses")


@pytest.mark.parametrize(
    ("slot_bytes", "folder"),
    [
        (1 << 50, FOLDER),  # more than there is
        (10, Path("/nowhere")),  # a system without POSIX shared memory
    ],
)
def test_without_room_there_are_no_slots_and_one_warning(
    slot_bytes: int, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = set(FOLDER.iterdir())

    assert allocate(slots=2, slot_bytes=slot_bytes, folder=folder) is None

    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert set(FOLDER.iterdir()) <= before


def test_where_there_is_room_there_are_slots() -> None:
    slots = allocate(slots=1, slot_bytes=10)

    assert slots is not None
    assert (FOLDER / slots.name).stat().st_size == 10
    slots.close()
