"""The benchmarks of limits and bills measure real processes; what they find is for their own runs to say."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from bench import admission, metering


def test_every_figure_of_admission_is_measured() -> None:
    report = asdict(admission.measure(admission.Effort(rounds=1, seconds=0.5, calls=2000)))

    # The difference of two rounds as short as these may come out at anything.
    assert all(-1 < report.pop(name) < 1 for name in list(report) if name.startswith("share_of_cpu"))
    assert_measured(report)


def test_every_figure_of_metering_is_measured() -> None:
    reports = [asdict(each) for each in metering.measure(metering.Effort(rounds=1, seconds=0.5, events=500))]

    assert [report.pop("database") for report in reports] == ["sqlite", "postgresql"]
    for report in reports:
        assert report["events"] == 500
        assert_measured(report)


def assert_measured(report: dict[str, Any]) -> None:
    for name, figure in report.items():
        figures = figure if isinstance(figure, list | tuple) else [figure]
        assert figures, name
        assert all(each > 0 for each in figures), name
