"""Every series of the gateway, built on a registry that is passed in.

Labels come from closed sets only: route templates, documented error codes, stage names. Never from what a
client sent.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_LATENCY_BUCKETS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.requests = Counter(
            "visiongate_http_requests_total",
            "Answered requests; `code` is `ok` or a documented error code.",
            ["method", "route", "status", "code"],
            registry=registry,
        )
        self.request_seconds = Histogram(
            "visiongate_http_request_duration_seconds",
            "From the request line to the last byte of the answer.",
            ["route"],
            buckets=_LATENCY_BUCKETS_SECONDS,
            registry=registry,
        )
        self.stage_seconds = Histogram(
            "visiongate_stage_duration_seconds",
            "Time that one picture or request spent in a stage.",
            ["stage"],
            buckets=_LATENCY_BUCKETS_SECONDS,
            registry=registry,
        )
        self.batch_pictures = Histogram(
            "visiongate_batch_pictures",
            "Pictures that shared one Triton call.",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=registry,
        )
        self.requests_in_flight = Gauge(
            "visiongate_requests_in_flight", "Requests being worked on.", registry=registry
        )
        self.accounts_fallback = Gauge(
            "visiongate_accounts_fallback",
            "1 while Redis cannot be relied on, and this replica admits by its own share of each rate.",
            registry=registry,
        )
        self.accounts_failures = Counter(
            "visiongate_accounts_failures_total",
            "Calls of Redis that failed, by why.",
            ["reason"],
            registry=registry,
        )
        self.journal_events = Gauge(
            "visiongate_journal_events",
            "Usage events in this replica's journal that Redis has not got yet.",
            registry=registry,
        )
        self.journal_replayed = Counter(
            "visiongate_journal_replayed_total", "Usage events handed over from journals.", registry=registry
        )
        self.journal_refused = Counter(
            "visiongate_journal_refused_total",
            "Usage events that Redis refuses while it is well; they are set aside as `.refused`.",
            registry=registry,
        )
        self.journal_damaged = Counter(
            "visiongate_journal_damaged_lines_total",
            "Lines of journals that cannot be read; the file is set aside as `.damaged`.",
            registry=registry,
        )
        self.tiers_reload_failures = Counter(
            "visiongate_tiers_reload_failures_total",
            "Times that the tier table was changed into one that cannot be used.",
            registry=registry,
        )
        self.held_body_bytes = Gauge(
            "visiongate_held_body_bytes", "Bytes of request bodies held in memory.", registry=registry
        )
