"""How fast the exported file runs here: metadata.json's `performance`."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

LATENCY_SECONDS = 0.8
THROUGHPUT_SECONDS = 0.5
RUNS_AT_LEAST = 3
RUNS_AT_MOST = 1000
USEFUL_BATCH_SIZES = (4, 8)


def measure_speed(
    run: Callable[[NDArray[Any]], object], row: NDArray[Any], *, max_batch_size: int
) -> dict[str, Any]:
    """The model alone, without decoding and letterbox. row: one picture as the model takes it.

    latency_ms: of one picture. throughput_ips: at the batch size that gives the most, of those that a large
    model does not need minutes for.
    """
    seconds = _time(run, row[None], LATENCY_SECONDS)
    of_one = statistics.median(seconds)
    throughput = {1: 1 / of_one}
    for batch_size in USEFUL_BATCH_SIZES:
        if batch_size <= max_batch_size and batch_size * of_one <= THROUGHPUT_SECONDS:
            batch = np.repeat(row[None], batch_size, axis=0)
            throughput[batch_size] = batch_size / statistics.median(_time(run, batch, THROUGHPUT_SECONDS))
    best = max(throughput, key=lambda batch_size: throughput[batch_size])
    return {
        "latency_ms": {
            "p50": round(1000 * float(np.percentile(seconds, 50)), 3),
            "p90": round(1000 * float(np.percentile(seconds, 90)), 3),
        },
        "throughput_ips": round(throughput[best], 2),
        "hardware": f"{_processor()}, {len(os.sched_getaffinity(0))} threads",
        "batch_size": best,
    }


def _time(run: Callable[[NDArray[Any]], object], batch: NDArray[Any], budget_seconds: float) -> list[float]:
    run(batch)  # warms up
    seconds: list[float] = []
    spent = 0.0
    while len(seconds) < RUNS_AT_LEAST or (spent < budget_seconds and len(seconds) < RUNS_AT_MOST):
        begin = time.perf_counter()
        run(batch)
        seconds.append(time.perf_counter() - begin)
        spent += seconds[-1]
    return seconds


def _processor() -> str:
    """The model's name where Linux tells it, else the architecture."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
