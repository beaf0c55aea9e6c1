"""An entry of the usage stream, as far as the ledger can take it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from serving.adapters import usage_codec
from serving.adapters.redis import keyspace
from serving.domain.usage import UsageEvent

EVENT_FIELD = b"e"
MAX_TEXT_CHARACTERS = 255
LARGEST_INTEGER = 2**63 - 1

RawEntry = tuple[bytes, Sequence[bytes]]
"""An entry's id; its fields, each followed by its value."""

_INTEGERS = tuple(each.name for each in fields(UsageEvent) if each.type == "int")
_TEXTS = tuple(each.name for each in fields(UsageEvent) if str(each.type).startswith("str"))
_MAY_BE_NONE = frozenset(each.name for each in fields(UsageEvent) if str(each.type).endswith("None"))


@dataclass(frozen=True, slots=True)
class StreamEntry:
    """entry_id: `<milliseconds>-<number>` of Redis' clock, unique in its partition's stream."""

    partition: int
    entry_id: str
    event: UsageEvent


def decoded(partition: int, raw: RawEntry) -> StreamEntry:
    """Raises LaterForm, and ValueError for what no gateway appended here, or no database would take."""
    entry_id, pairs = raw
    values = dict(zip(pairs[::2], pairs[1::2], strict=True))
    if EVENT_FIELD not in values:
        raise ValueError("it has no event")
    event = usage_codec.decode(values[EVENT_FIELD])
    _check(event)
    if keyspace.partition_of(event.key_id) != partition:
        raise ValueError("its key belongs to another partition")
    return StreamEntry(partition, entry_id.decode(), event)


def _check(event: UsageEvent) -> None:
    # The codec takes any JSON of the right names. A database refuses a whole batch for one value that it
    # cannot hold, and would go on to do so.
    for name in _INTEGERS:
        value = getattr(event, name)
        if type(value) is not int or not 0 <= value <= LARGEST_INTEGER:
            raise ValueError(f"{name} cannot be {str(value)[:40]!r}")
    for name in _TEXTS:
        value = getattr(event, name)
        if value is None and name in _MAY_BE_NONE:
            continue
        if type(value) is not str or len(value) > MAX_TEXT_CHARACTERS or "\0" in value:
            raise ValueError(f"{name} cannot be {str(value)[:40]!r}")
