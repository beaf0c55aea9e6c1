"""Usage events as bytes: what the stream and the journal carry, and the consumer reads, however late.

Gateways and the consumer are not upgraded in one moment. A field that who does not know it may leave out is
added to the form as it is; whatever else changes makes the next form.
"""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime, timedelta

import orjson

from serving.domain.usage import UsageEvent

FORM = 1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_NAMES = tuple(field.name for field in fields(UsageEvent))


class LaterForm(ValueError):
    """An event that only a newer version of this program can read."""


def encode(event: UsageEvent) -> bytes:
    values = {name: getattr(event, name) for name in _NAMES}
    values["admitted_at"] = (event.admitted_at - _EPOCH) // _MICROSECOND
    return orjson.dumps({"form": FORM, **values})


def decode(data: bytes) -> UsageEvent:
    """Fields that are not known are left out. Raises LaterForm, and ValueError for what no gateway wrote."""
    try:
        values = orjson.loads(data)
        _check_form(values["form"])
        known = {name: values[name] for name in _NAMES}
        known["admitted_at"] = _EPOCH + known["admitted_at"] * _MICROSECOND
        return UsageEvent(**known)
    except (TypeError, KeyError, OverflowError, orjson.JSONDecodeError) as exc:
        raise ValueError("this is no usage event") from exc


def _check_form(form: object) -> None:
    if type(form) is int and form > FORM:
        raise LaterForm(f"a usage event of form {form}, where {FORM} is known")
    if form != FORM:
        raise ValueError(f"a usage event of form {str(form)[:40]!r}, where {FORM} is known")
