"""`visiongate-export` as a real process, on the sample checkpoint and a handful of golden pictures."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export_pipeline.job import JobFolder
from export_pipeline.progress import Event

ROOT = Path(__file__).parents[2]
COMMAND = Path(sys.executable).parent / "visiongate-export"
SAMPLE_CHECKPOINT = ROOT / "export_pipeline" / "sample" / "shapes.pt"
GOLDEN_PICTURES = ROOT / "tests" / "golden" / "pictures"
HANDFUL = ("landscape.jpg", "tiny.png", "grey.jpg", "overlap_two_classes.jpg")
NAME = "shapes"
END_SECONDS = 240.0


@dataclass
class Ended:
    """What a process said and how it ended. result: the last line, of one that ended well."""

    exit_code: int
    events: list[Event] = field(default_factory=list)
    result: dict[str, Any] | None = None
    err: str = ""

    def steps(self, kind: str) -> list[str]:
        return [event.step for event in self.events if event.kind == kind]


def golden_handful(folder: Path) -> Path:
    """A new folder with a few of the golden pictures."""
    folder.mkdir()
    for name in HANDFUL:
        shutil.copy(GOLDEN_PICTURES / name, folder)
    return folder


def run_arguments(out: Path, repository: Path | None, pictures: Path, /, **options: str) -> list[str]:
    """`run` of the sample; option values by name, `imgsz="640x384"`, say; an empty value is a bare flag."""
    said = {
        "checkpoint": str(SAMPLE_CHECKPOINT),
        "name": NAME,
        "imgsz": "320",
        "pictures": str(pictures),
        "out": str(out),
        **({} if repository is None else {"publish": str(repository)}),
        **options,
    }
    arguments = ["run"]
    for name, value in said.items():
        arguments += [f"--{name.replace('_', '-')}", *([value] if value else [])]
    return arguments


@contextmanager
def exporting(
    arguments: Sequence[str], *, program: Sequence[str | Path] = (COMMAND,), **process: Any
) -> Iterator[ExportProcess]:
    with subprocess.Popen(
        [*program, *arguments, "--progress", "json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **process,
    ) as started:
        try:
            yield ExportProcess(started)
        finally:
            started.kill()


class ExportProcess:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid

    def until_end(self, at_event: Callable[[Event], None] = lambda _event: None) -> Ended:
        """Read to the end. at_event: called with each event as it comes."""
        ended = Ended(exit_code=-1)
        assert self._process.stdout is not None
        for line in self._process.stdout:
            values = json.loads(line)
            if "result" in values:
                ended.result = values["result"]
                continue
            ended.events.append(Event.model_validate(values))
            at_event(ended.events[-1])
        assert self._process.stderr is not None
        ended.err = self._process.stderr.read()
        ended.exit_code = self._process.wait(END_SECONDS)
        return ended

    def kill(self) -> None:
        """-9, this one process: what it has started must end by itself."""
        self._process.kill()


def export_process(arguments: Sequence[str], **process: Any) -> Ended:
    """Run to the end."""
    with exporting(arguments, **process) as started:
        return started.until_end()


@dataclass(frozen=True)
class FinishedExport:
    """The sample, exported and published once; not to be changed."""

    job: JobFolder
    repository: Path
    pictures: Path
    ended: Ended

    @property
    def entry(self) -> Path:
        return self.repository / NAME

    @property
    def package(self) -> Path:
        return self.job.zip_file(self.job.record())


def finish_export(folder: Path) -> FinishedExport:
    """For a session-wide fixture. Takes half a minute."""
    repository = folder / "model_repo"
    repository.mkdir()
    pictures = golden_handful(folder / "golden")
    ended = export_process(run_arguments(folder / "job", repository, pictures))
    assert ended.exit_code == 0, ended.err
    return FinishedExport(JobFolder(folder / "job"), repository, pictures, ended)


def snapshot(folder: Path) -> Mapping[str, str]:
    """Each file's SHA-256, each link's target, each folder: equal where nothing was touched."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"  # noqa: PTH115 - as text, whatever it is
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "a folder"
    return found


def half_written(folder: Path) -> list[str]:
    """Drafts that somebody has left."""
    return sorted(str(path) for path in folder.rglob(".*") if ".draft" in path.name)
