from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from export_pipeline.certificate import speed
from export_pipeline.certificate.speed import measure_speed

ROW = np.zeros((4, 4, 3), np.uint8)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "LATENCY_SECONDS", 0.0)


@pytest.mark.parametrize(("max_batch_size", "sizes"), [(1, {1}), (4, {1, 4}), (16, {1, 4, 8})])
def test_only_batches_that_the_model_takes_are_run(max_batch_size: int, sizes: set[int]) -> None:
    run_sizes = set()

    def run(batch: NDArray[Any]) -> None:
        assert batch.shape[1:] == ROW.shape
        run_sizes.add(len(batch))

    measured = measure_speed(run, ROW, max_batch_size=max_batch_size)

    assert run_sizes == sizes
    assert measured["batch_size"] in sizes


def test_a_model_that_takes_seconds_is_not_run_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "THROUGHPUT_SECONDS", 0.0)

    measured = measure_speed(lambda batch: None, ROW, max_batch_size=16)

    assert measured["batch_size"] == 1


def test_the_throughput_is_that_of_the_best_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of 4 cost twice a batch of 1, those of 8 as much as eight."""
    now = 0.0

    def run(batch: NDArray[Any]) -> None:
        nonlocal now
        now += {1: 0.01, 4: 0.02, 8: 0.08}[len(batch)]

    monkeypatch.setattr("time.perf_counter", lambda: now)

    measured = measure_speed(run, ROW, max_batch_size=16)

    assert measured["latency_ms"] == {"p50": 10.0, "p90": 10.0}
    assert (measured["throughput_ips"], measured["batch_size"]) == (200.0, 4)
    assert measured["hardware"].endswith("threads")
