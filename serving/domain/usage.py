"""The record that a billed request leaves behind."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class UsageEvent:
    """One successful answer. `request_id` is the event's identity: the same id is the same event."""

    request_id: str
    key_id: str
    user: str
    tier: str
    model: str
    model_version: str | None
    pictures: int
    pixels: int
    received_bytes: int
    inference_seconds: float
    answered_at: datetime
