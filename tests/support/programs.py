"""Programs that tests start, kill at any moment and start again; their output goes to a file."""

from __future__ import annotations

import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from tests.support.waiting import eventually

START_TIMEOUT_SECONDS = 60.0
STOP_TIMEOUT_SECONDS = 30.0


class Program(ABC):
    """One program on this machine. Started again it is the same program: same arguments, same output file."""

    def __init__(
        self, name: str, argv: Sequence[str | Path], *, output: Path, environment: Mapping[str, str]
    ) -> None:
        self.name = name
        self._argv = [str(part) for part in argv]
        self._output = output
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} has not been started"
        return self._process.pid

    def start(self) -> None:
        assert not self.is_running(), f"{self.name} runs already"
        with self._output.open("ab") as sink:
            self._process = subprocess.Popen(
                self._argv, env=self._environment, stdout=sink, stderr=subprocess.STDOUT
            )

    @abstractmethod
    def answers(self) -> bool:
        """Whether it does what it is for."""

    def await_ready(self) -> None:
        """Fails, with what it has said, where it ends instead."""

        def is_ready() -> bool:
            assert self.is_running(), f"{self.name} has ended:\n{self.output()}"
            return self.answers()

        ready = eventually(is_ready, within_seconds=START_TIMEOUT_SECONDS)
        assert ready, f"{self.name} does not become ready:\n{self.output()}"

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """SIGKILL. Returns when it is gone, its sockets with it."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM, and time to end by itself."""
        self._end(signal.SIGTERM)

    def freeze(self) -> None:
        """It keeps its sockets and answers nobody: worse than being gone."""
        psutil.Process(self.pid).suspend()

    def thaw(self) -> None:
        psutil.Process(self.pid).resume()

    def output(self) -> str:
        return self._output.read_text(errors="replace") if self._output.exists() else ""

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            try:
                process.wait(STOP_TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise AssertionError(f"{self.name} did not end by itself:\n{self.output()}") from None
