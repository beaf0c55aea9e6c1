"""The benchmark measures a real stack; what it measures is for its own run to say."""

from __future__ import annotations

from dataclasses import asdict

from bench.gateway import CONNECTIONS, measure
from tests.support.stack import Stack


def test_every_figure_of_the_report_is_measured(stack: Stack) -> None:
    report = asdict(measure(stack, rounds=1, seconds=0.3))

    assert report["connections"] == CONNECTIONS
    for name, figure in report.items():
        figures = figure if isinstance(figure, list) else [figure]
        assert figures, name
        assert all(each > 0 for each in figures), name
