"""Every series of the ledger's consumer, built on a registry that is passed in."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_BATCH_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class MeterMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.backlog = Gauge(
            "visiongate_ledger_backlog_events",
            "Usage events in the stream that are not acknowledged yet.",
            registry=registry,
        )
        self.lag_seconds = Gauge(
            "visiongate_ledger_lag_seconds", "Age of the oldest event in the stream.", registry=registry
        )
        self.moved = Counter(
            "visiongate_ledger_events_total",
            "Events acknowledged, by what they were to the ledger: new, redelivered or duplicate.",
            ["verdict"],
            registry=registry,
        )
        self.set_aside = Counter(
            "visiongate_ledger_poison_total",
            "Entries of the stream that are no usage event, moved to the side stream.",
            registry=registry,
        )
        self.poison = Gauge(
            "visiongate_ledger_poison_entries",
            "Entries in the side stream, for an operator to look at.",
            registry=registry,
        )
        self.later = Counter(
            "visiongate_ledger_later_form_total",
            "Entries of a later form that this consumer was handed: they wait in the stream for a newer one.",
            registry=registry,
        )
        self.recounted = Counter(
            "visiongate_ledger_recounted_keys_total",
            "Keys counted again because their entries were gone when they should have been acknowledged.",
            registry=registry,
        )
        self.failures = Counter(
            "visiongate_ledger_failures_total",
            "Steps that failed and are tried again, by who did not answer: redis or sql.",
            ["part"],
            registry=registry,
        )
        self.batch_seconds = Histogram(
            "visiongate_ledger_batch_duration_seconds",
            "From a batch's reading to its acknowledgement.",
            buckets=_BATCH_SECONDS,
            registry=registry,
        )
