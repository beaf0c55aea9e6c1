"""The record that a billed request leaves behind, and what is added up from many."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from serving.domain.month import Month

GroupBy = Literal["total", "key", "user", "deployment", "tier", "day", "hour"]

Verdict = Literal["new", "redelivered", "duplicate"]
"""What an entry of the stream was to the ledger.

redelivered: the ledger had its event, by this very entry. duplicate: by another one, so that the charge that
this one stands for has to be given back.
"""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_HOUR = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class UsageEvent:
    """One successful answer. `request_id` is the event's identity: the same id is the same event.

    pictures: those that were answered; of a list, the unusable ones are not billed.
    admitted_at: on the clock that admitted it (Redis'), so that the month it is billed in is the month whose
    quota it was taken from. trace_id: 32 hexadecimal digits (W3C Trace Context).
    price_micros_…: the tier's prices when it was admitted. …_microseconds: where its time went; a list is
    timed by its slowest picture in each stage.
    """

    request_id: str
    key_id: str
    user: str
    tier: str
    deployment: str
    model_version: str | None
    pictures: int
    pixels: int
    received_bytes: int
    decode_microseconds: int
    preprocess_microseconds: int
    queue_microseconds: int
    inference_microseconds: int
    postprocess_microseconds: int
    price_micros_per_1000: int
    price_micros_per_month: int
    trace_id: str
    admitted_at: datetime

    @property
    def month(self) -> Month:
        return Month.of(self.admitted_at)


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """Which events to add up: of `[begin, end)`, whole hours in UTC, and of one key, user or deployment.

    Raises ValueError for a period that is none, or not of whole hours.
    """

    begin: datetime
    end: datetime
    group_by: GroupBy = "total"
    key_id: str | None = None
    user: str | None = None
    deployment: str | None = None

    def __post_init__(self) -> None:
        for moment in (self.begin, self.end):
            if moment.utcoffset() is None or (moment - _EPOCH) % _HOUR:
                raise ValueError(f"{moment} is no whole hour in UTC")
        if self.begin >= self.end:
            raise ValueError("a period ends after it begins")


@dataclass(frozen=True, slots=True)
class UsageTotals:
    """group: a key's id, a user, a deployment, a tier, a day `2026-11-21`, an hour `2026-11-21T13`, or ''.

    amount_micros: of its pictures, rounded once for each price that they had.
    """

    group: str
    requests: int
    pictures: int
    pixels: int
    received_bytes: int
    inference_microseconds: int
    amount_micros: int


@dataclass(frozen=True, slots=True)
class InvoiceLine:
    """What one key owes for a month at one price, for pictures or as its subscription.

    quantity: of a subscription 1, or 0 where its tier had no price that anybody knew of. unit_micros: for a
    thousand pictures, or for the month.
    """

    user: str
    key_id: str
    tier: str
    deployment: str | None
    what: Literal["pictures", "subscription"]
    quantity: int
    unit_micros: int
    amount_micros: int


@dataclass(frozen=True, slots=True)
class Invoice:
    """Lines by user, key, tier, deployment and price. The total is the sum of the lines as printed."""

    month: Month
    lines: tuple[InvoiceLine, ...]

    @property
    def total_micros(self) -> int:
        return sum(line.amount_micros for line in self.lines)
