from __future__ import annotations

import pytest

from serving.waiting_line import WaitingLine


def line_of(*priorities: int) -> WaitingLine[str]:
    """Named by priority and arrival, from 0: `3.0` is the first of the least urgent."""
    line: WaitingLine[str] = WaitingLine()
    for number, priority in enumerate(priorities):
        line.add(f"{priority}.{number}", priority)
    return line


@pytest.mark.parametrize(
    ("priorities", "in_order"),
    [
        ((), []),
        ((3,), ["3.0"]),
        ((2, 2, 2), ["2.0", "2.1", "2.2"]),  # equals by arrival
        ((3, 2, 1), ["1.2", "2.1", "3.0"]),
        ((3, 1, 3, 1), ["1.1", "1.3", "3.0", "3.2"]),
    ],
)
def test_the_urgent_are_first_and_equals_as_they_came(
    priorities: tuple[int, ...], in_order: list[str]
) -> None:
    forwards, backwards = line_of(*priorities), line_of(*priorities)

    assert len(forwards) == len(priorities)
    assert [forwards.pop_first() for _ in priorities] == in_order
    assert [backwards.pop_last() for _ in priorities] == in_order[::-1]
    assert not forwards
    assert not backwards


def test_who_is_first_stays_when_asked_after() -> None:
    line = line_of(3, 1)

    assert [line.first(), line.first()] == ["1.1", "1.1"]
    assert (line.most_urgent, line.least_urgent, len(line)) == (1, 3, 2)


def test_of_nobody_nobody_is_first() -> None:
    line = line_of()

    assert (line.most_urgent, line.least_urgent) == (None, None)
    for ask in (line.first, line.pop_first, line.pop_last):
        with pytest.raises(ValueError, match="empty"):
            ask()


def test_one_who_leaves_is_not_there_any_more() -> None:
    line = line_of(1, 3, 3)

    assert line.discard("1.0", 1)
    assert not line.discard("1.0", 1)
    assert not line.discard("3.1", 2)
    assert (line.most_urgent, len(line)) == (3, 2)
    assert line.discard("3.1", 3)
    assert line.pop_first() == "3.2"
