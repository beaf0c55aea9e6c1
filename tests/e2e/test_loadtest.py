"""The locust file drives a real stack; how fast is the benchmarks' business."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

from tests.support.stack import ROOT, Stack


def test_locust_gets_answers_and_no_failures(stack: Stack, tmp_path: Path) -> None:
    command: list[str | Path] = [
        *(Path(sys.executable).parent / "locust", "-f", ROOT / "loadtests" / "locustfile.py", "--headless"),
        *("--users", "2", "--spawn-rate", "2", "--run-time", "3s", "--csv", tmp_path / "load"),
    ]
    result = subprocess.run(
        command, env=dict(stack.environment), capture_output=True, text=True, timeout=60, check=False
    )

    assert result.returncode == 0, result.stderr
    with (tmp_path / "load_stats.csv").open() as file:
        total = list(csv.DictReader(file))[-1]
    assert int(total["Request Count"]) > 10
    assert int(total["Failure Count"]) == 0
