"""`visiongate-export` within the test's own process: quick, and its stages can be replaced."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest

from export_pipeline.cli import main


@dataclass(frozen=True)
class Ended:
    exit_code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """Of an error, without the frame and the line breaks that a terminal gets."""
        return " ".join(self.err.replace("│", " ").split())


class Command:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *arguments: str) -> Ended:
        self._monkeypatch.setattr(sys, "argv", ["visiongate-export", *arguments])
        self._capsys.readouterr()
        try:
            main()
            exit_code = 0
        except SystemExit as ended:
            exit_code = int(ended.code or 0)
        said = self._capsys.readouterr()
        return Ended(exit_code, said.out, said.err)
