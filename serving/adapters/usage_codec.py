"""Usage events as bytes: what the stream and the journal carry, and the consumer reads, however late."""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime, timedelta

import orjson

from serving.domain.usage import UsageEvent

FORM = 1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_NAMES = tuple(field.name for field in fields(UsageEvent))


def encode(event: UsageEvent) -> bytes:
    values = {name: getattr(event, name) for name in _NAMES}
    values["admitted_at"] = (event.admitted_at - _EPOCH) // _MICROSECOND
    return orjson.dumps({"form": FORM, **values})


def decode(data: bytes) -> UsageEvent:
    """Raises ValueError for what `encode` did not write."""
    try:
        values = orjson.loads(data)
        form = values.pop("form")
        admitted_at = _EPOCH + values.pop("admitted_at") * _MICROSECOND
        event = UsageEvent(admitted_at=admitted_at, **values)
    except (TypeError, KeyError, AttributeError, OverflowError, orjson.JSONDecodeError) as exc:
        raise ValueError("this is no usage event") from exc
    if form != FORM:
        raise ValueError(f"a usage event of form {form}, where {FORM} is known")
    return event
