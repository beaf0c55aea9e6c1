"""The benchmark measures a real stack; what it measures is for its own run to say."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from bench import export, gateway
from tests.support.stack import Stack


def test_every_figure_of_the_report_is_measured(stack: Stack) -> None:
    report = asdict(gateway.measure(stack, rounds=1, seconds=0.3))

    assert report["connections"] == gateway.CONNECTIONS
    for name, figure in report.items():
        figures = figure if isinstance(figure, list) else [figure]
        assert figures, name
        assert all(each > 0 for each in figures), name


def test_every_figure_of_an_export_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The smallest data set, and the committed checkpoint's whole way into a repository."""
    row = export.measure("ONNX", {}, export.draw_scenes(tmp_path / "scenes", 2), tmp_path)
    export.show([row])

    assert row.size_mb > 1
    assert row.latency_ms > 0
    assert row.map50_95.keys() == {"checkpoint", "file", "gateway"}
    assert all(0.5 < figure <= 1 for figure in row.map50_95.values())
    assert "publish.publish" in row.seconds_by_step
    assert f"{row.latency_ms:.1f}" in capsys.readouterr().out
