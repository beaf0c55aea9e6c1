"""Usage events for tests that care about one or two of their fields."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from serving.domain.usage import UsageEvent

EVENT = UsageEvent(
    request_id="req_1",
    key_id="key_1",
    user="ada",
    tier="pro",
    deployment="shapes",
    model_version="1",
    pictures=1,
    pixels=307_200,
    received_bytes=40_000,
    decode_microseconds=900,
    preprocess_microseconds=400,
    queue_microseconds=1_000,
    inference_microseconds=5_000,
    postprocess_microseconds=300,
    price_micros_per_1000=500_000,
    price_micros_per_month=0,
    trace_id="0af7651916cd43dd8448eb211c80319c",
    admitted_at=datetime(2026, 11, 21, 12, 0, 0, 123_456, tzinfo=UTC),
)


def make_event(request_id: str = "req_1", **fields: Any) -> UsageEvent:
    return replace(EVENT, request_id=request_id, **fields)
