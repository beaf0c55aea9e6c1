"""An export environment without torch, in which the stages that open a checkpoint are hostile."""

from __future__ import annotations

import json
import shutil
import sys
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import export_pipeline
from export_pipeline.executors.local_process import LocalProcess
from export_pipeline.job import JobFolder, JobRecord
from export_pipeline.pipeline import save_done, steps_of
from export_pipeline.progress import Event
from export_pipeline.request import GIBIBYTE, read_request
from tests.support import hostile_stages

INSPECT, EXPORT = "checkpoint.inspect", "export.graph"


class HostileJob:
    """A job whose checkpoint was fetched, and is a plan for `hostile_stages`."""

    def __init__(self, path: Path, environment: Path, plan: dict[str, object], **limits: float) -> None:
        self.record = JobRecord(
            job_id="job",
            version=1,
            request=read_request(
                {
                    "checkpoint": "/nowhere/plan.json",
                    "name": "hostile",
                    "limits": {"memory_bytes": GIBIBYTE, "time_seconds": 60.0, **limits},
                }
            ),
        )
        self.folder = JobFolder(path)
        self.folder.create(self.record)
        self.folder.write("checkpoint/plan.json", json.dumps(plan).encode())
        save_done(steps_of(self.record)[0], self.folder, self.record, 0.0)
        self.python = environment / "bin" / "python"
        self.events: list[Event] = []

    def run(
        self, steps: Sequence[str] = (INSPECT,), *, unconfined: bool = False, disk_reserve_bytes: int = 0
    ) -> None:
        executor = LocalProcess(self.python, unconfined=unconfined, disk_reserve_bytes=disk_reserve_bytes)
        executor.run(self.folder, self.record, steps, self.events.append)

    def result(self) -> Any:
        """Of the step `checkpoint.inspect`, as the deed returned it."""
        return json.loads((self.folder.path / "checkpoint.json").read_text())


NewJob = Callable[..., HostileJob]


@pytest.fixture(scope="session")
def hostile_environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `ensure_environment` leaves one, but that its package is a copy, and its libraries are ours."""
    folder = tmp_path_factory.mktemp("hostile") / "environment"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    base = Path(sys.base_prefix) / "bin"
    site_packages = folder / "lib" / version / "site-packages"
    site_packages.mkdir(parents=True)
    (folder / "bin").mkdir()
    (folder / "bin" / "python").symlink_to(base / version)
    (folder / "pyvenv.cfg").write_text(f"home = {base}\ninclude-system-site-packages = false\n")
    (site_packages / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n")
    package = site_packages / "export_pipeline"
    source = Path(export_pipeline.__file__).parent
    shutil.copytree(source, package, ignore=shutil.ignore_patterns("sample", "__pycache__"))
    for stage in ("checkpoint", "export"):
        shutil.copy(hostile_stages.__file__, package / "stages" / f"{stage}.py")
    return folder


@pytest.fixture
def new_job(tmp_path: Path, hostile_environment: Path) -> NewJob:
    def make(
        deed: str = "finish",
        arguments: dict[str, object] | None = None,
        export_graph: Sequence[object] = ("finish", {}),
        **limits: float,
    ) -> HostileJob:
        plan: dict[str, object] = {"inspect": [deed, arguments or {}], "export_graph": export_graph}
        return HostileJob(tmp_path / "job", hostile_environment, plan, **limits)

    return make
