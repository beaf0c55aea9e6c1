"""The tables of the ledger, the same on SQLite and PostgreSQL.

::

    usage_events    each billed event, once: `request_id` is its identity
    usage_hourly    sums of them by hour in UTC  ┐ kept in the transaction
    usage_daily     sums of them by day in UTC   ┘ that takes in the events

    subscription_prices    what a tier costs a month from a moment on, as gateways came to know of it
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, Index, String
from sqlalchemy.orm import Mapped, declared_attr, mapped_column

from serving.adapters.sql.base import Table, UtcDateTime

NAME = String(255)


class UsageEventRow(Table):
    """A `UsageEvent`. stream_entry: of its key's stream, the one that brought it; another is a duplicate."""

    __tablename__ = "usage_events"

    request_id: Mapped[str] = mapped_column(NAME, primary_key=True)
    stream_entry: Mapped[str] = mapped_column(NAME)
    key_id: Mapped[str] = mapped_column(NAME)
    user: Mapped[str] = mapped_column(NAME)
    tier: Mapped[str] = mapped_column(NAME)
    deployment: Mapped[str] = mapped_column(NAME)
    model_version: Mapped[str | None] = mapped_column(NAME)
    pictures: Mapped[int] = mapped_column(BigInteger)
    pixels: Mapped[int] = mapped_column(BigInteger)
    received_bytes: Mapped[int] = mapped_column(BigInteger)
    decode_microseconds: Mapped[int] = mapped_column(BigInteger)
    preprocess_microseconds: Mapped[int] = mapped_column(BigInteger)
    queue_microseconds: Mapped[int] = mapped_column(BigInteger)
    inference_microseconds: Mapped[int] = mapped_column(BigInteger)
    postprocess_microseconds: Mapped[int] = mapped_column(BigInteger)
    price_micros_per_1000: Mapped[int] = mapped_column(BigInteger)
    price_micros_per_month: Mapped[int] = mapped_column(BigInteger)
    trace_id: Mapped[str] = mapped_column(NAME)
    admitted_at: Mapped[datetime] = mapped_column(UtcDateTime)


class SubscriptionPriceRow(Table):
    __tablename__ = "subscription_prices"

    tier: Mapped[str] = mapped_column(NAME, primary_key=True)
    since: Mapped[datetime] = mapped_column(UtcDateTime, primary_key=True)
    price_micros_per_month: Mapped[int] = mapped_column(BigInteger)


class RollUp:
    """Sums of the events of one key on one deployment on the same terms, within an hour or a day.

    The primary key is all of an event that a bill depends on. last_admitted_at: of the latest event in it,
    whose terms a month's subscription follows.
    """

    @declared_attr.directive
    @classmethod
    def __table_args__(cls) -> tuple[Index | dict[str, bool], ...]:
        # On SQLite, rows lie in the order of the primary key: a month of everybody's is read in one go.
        return Index(None, "key_id", "begin"), Index(None, "user", "begin"), {"sqlite_with_rowid": False}

    begin: Mapped[datetime] = mapped_column(UtcDateTime, primary_key=True)
    key_id: Mapped[str] = mapped_column(NAME, primary_key=True)
    user: Mapped[str] = mapped_column(NAME, primary_key=True)
    deployment: Mapped[str] = mapped_column(NAME, primary_key=True)
    tier: Mapped[str] = mapped_column(NAME, primary_key=True)
    price_micros_per_1000: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    price_micros_per_month: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    requests: Mapped[int] = mapped_column(BigInteger)
    pictures: Mapped[int] = mapped_column(BigInteger)
    pixels: Mapped[int] = mapped_column(BigInteger)
    received_bytes: Mapped[int] = mapped_column(BigInteger)
    inference_microseconds: Mapped[int] = mapped_column(BigInteger)
    last_admitted_at: Mapped[datetime] = mapped_column(UtcDateTime)


class UsageHourlyRow(RollUp, Table):
    __tablename__ = "usage_hourly"


class UsageDailyRow(RollUp, Table):
    __tablename__ = "usage_daily"


EVENTS = Table.metadata.tables[UsageEventRow.__tablename__]
HOURLY = Table.metadata.tables[UsageHourlyRow.__tablename__]
DAILY = Table.metadata.tables[UsageDailyRow.__tablename__]

SUMS = ("requests", "pictures", "pixels", "received_bytes", "inference_microseconds")
"""The columns of a roll-up that are added up."""
