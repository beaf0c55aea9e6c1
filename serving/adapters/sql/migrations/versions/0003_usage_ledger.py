"""The ledger: usage events, what they add up to by hour and by day, and what subscriptions cost when."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from serving.adapters.sql.schema import no_way_back

revision = "0003_usage_ledger"
down_revision = "0002_key_lifecycle"
downgrade = no_way_back


def upgrade() -> None:
    op.create_table(
        "usage_events",
        *_names("request_id", "stream_entry", "key_id", "user", "tier", "deployment"),
        sa.Column("model_version", sa.String(255), nullable=True),
        *_numbers("pictures", "pixels", "received_bytes"),
        *_numbers("decode_microseconds", "preprocess_microseconds", "queue_microseconds"),
        *_numbers("inference_microseconds", "postprocess_microseconds"),
        *_numbers("price_micros_per_1000", "price_micros_per_month"),
        *_names("trace_id"),
        sa.Column("admitted_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("request_id", name="pk_usage_events"),
    )
    terms = ("price_micros_per_1000", "price_micros_per_month")
    for name in ("usage_hourly", "usage_daily"):
        op.create_table(
            name,
            sa.Column("begin", sa.DateTime(timezone=True), nullable=False),
            *_names("key_id", "user", "deployment", "tier"),
            *_numbers(*terms),
            *_numbers("requests", "pictures", "pixels", "received_bytes", "inference_microseconds"),
            sa.Column("last_admitted_at", sa.DateTime(timezone=True), nullable=False),
            sa.PrimaryKeyConstraint(
                "begin", "key_id", "user", "deployment", "tier", *terms, name=f"pk_{name}"
            ),
            sqlite_with_rowid=False,
        )
        op.create_index(f"ix_{name}_key_id", name, ["key_id", "begin"])
        op.create_index(f"ix_{name}_user", name, ["user", "begin"])
    op.create_table(
        "subscription_prices",
        *_names("tier"),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        *_numbers("price_micros_per_month"),
        sa.PrimaryKeyConstraint("tier", "since", name="pk_subscription_prices"),
    )


def _names(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.String(255), nullable=False) for name in names]


def _numbers(*names: str) -> list[sa.Column[int]]:
    return [sa.Column(name, sa.BigInteger, nullable=False, autoincrement=False) for name in names]
