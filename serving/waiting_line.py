"""Those who wait for a place: the more urgent first, and among equals whoever came first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class WaitingLine(Generic[T]):
    """Priority 1 is the most urgent. Nothing that waits is in it twice."""

    def __init__(self) -> None:
        self._by_priority: dict[int, OrderedDict[T, None]] = {}  # no line in it is empty

    def __len__(self) -> int:
        return sum(map(len, self._by_priority.values()))

    @property
    def most_urgent(self) -> int | None:
        """The priority of whoever is first, None where nobody waits."""
        return min(self._by_priority, default=None)

    @property
    def least_urgent(self) -> int | None:
        return max(self._by_priority, default=None)

    def add(self, item: T, priority: int) -> None:
        self._by_priority.setdefault(priority, OrderedDict())[item] = None

    def first(self) -> T:
        """Who came first of the most urgent, and stays. Raises ValueError where nobody waits."""
        return next(iter(self._by_priority[min(self._by_priority)]))

    def pop_first(self) -> T:
        return self._pop(min(self._by_priority), last=False)

    def pop_last(self) -> T:
        """Who came last of the least urgent. Raises ValueError where nobody waits."""
        return self._pop(max(self._by_priority), last=True)

    def discard(self, item: T, priority: int) -> bool:
        """Whether it was waiting, and now does not."""
        line = self._by_priority.get(priority)
        if line is None or item not in line:
            return False
        del line[item]
        self._drop_if_empty(priority)
        return True

    def _pop(self, priority: int, *, last: bool) -> T:
        item, _ = self._by_priority[priority].popitem(last=last)
        self._drop_if_empty(priority)
        return item

    def _drop_if_empty(self, priority: int) -> None:
        if not self._by_priority[priority]:
            del self._by_priority[priority]
