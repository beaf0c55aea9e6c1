"""Every process of one run, wherever it went, and the scratch folder: what must be gone after it.

There are three ways to know them, since each misses some. Descendants: until a parent ends first. The
environment, which names the run directory: until a process writes its title over it, as Ray's workers do, and
without Triton, which is not given our settings. The command line, which names the scratch folder of Ray and
HAProxy.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import psutil

from tests.support.waiting import eventually

GONE_WITHIN_SECONDS = 10.0
SCRATCH = re.compile(r"/tmp/vg-[\w-]+")


class RunProcesses:
    """Look while it runs, so that what is left later is recognised."""

    def __init__(self, pid: int, run_directory: Path) -> None:
        self._leader = psutil.Process(pid)
        self._run_directory = str(run_directory)
        self._seen = {self._leader}
        self.scratch: set[Path] = set()

    def look(self) -> None:
        for process in psutil.process_iter():
            if process not in self._seen and self._is_ours(process):
                self._seen.add(process)
        for process in list(self._seen):
            self._seen.update(_children(process))
            self.scratch.update(map(Path, SCRATCH.findall(" ".join(_command_line(process)))))

    def has(self, program: str) -> bool:
        self.look()
        return any(program in " ".join(_command_line(each)) for each in self._seen)

    def still_running(self, *, within_seconds: float = GONE_WITHIN_SECONDS) -> list[str]:
        """The processes that are left once they had their time to go."""
        eventually(lambda: not self._running(), within_seconds=within_seconds)
        return self._running()

    def left_behind(self) -> list[str]:
        return self.still_running() + [str(folder) for folder in self.scratch if folder.exists()]

    def remove(self) -> None:
        for process in self._seen:
            if _lives(process):
                process.kill()
        for folder in self.scratch:
            shutil.rmtree(folder, ignore_errors=True)

    def _running(self) -> list[str]:
        self.look()
        # What has a title in place of its command line has padded it.
        return [f"{each.pid} {' '.join(_command_line(each)).strip()}" for each in self._seen if _lives(each)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            if process.environ().get("VISIONGATE_RUN_DIRECTORY") == self._run_directory:
                return True
        except psutil.Error:
            return False
        command_line = " ".join(_command_line(process))
        return any(str(folder) in command_line for folder in self.scratch)


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
