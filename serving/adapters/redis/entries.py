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

_TYPES = {each.name: each.type for each in fields(UsageEvent) if each.name != "admitted_at"}


@dataclass(frozen=True, slots=True)
class StreamEntry:
    """entry_id: `<milliseconds>-<number>` of Redis' clock, unique in its partition's stream."""

    partition: int
    entry_id: str
    event: UsageEvent


def decoded(partition: int, raw: RawEntry) -> StreamEntry:
    """Raises ValueError for what no gateway appended here, or no database would take."""
    entry_id, pairs = raw
    values = dict(zip(pairs[::2], pairs[1::2], strict=True))
    if EVENT_FIELD not in values:
        raise ValueError("it has no event")
    event = usage_codec.decode(values[EVENT_FIELD])
    for name, type_name in _TYPES.items():
        _check(name, str(type_name), getattr(event, name))
    if keyspace.partition_of(event.key_id) != partition:
        raise ValueError("its key belongs to another partition")
    return StreamEntry(partition, entry_id.decode(), event)


def _check(name: str, type_name: str, value: object) -> None:
    # The codec takes any JSON of the right names. A database refuses a whole batch for one value that it
    # cannot hold, and would go on to do so.
    if type_name == "int":
        is_fine = type(value) is int and 0 <= value <= LARGEST_INTEGER
    elif value is None:
        is_fine = "None" in type_name
    else:
        is_fine = isinstance(value, str) and len(value) <= MAX_TEXT_CHARACTERS and "\0" not in value
    if not is_fine:
        raise ValueError(f"{name} cannot be {str(value)[:40]!r}")
