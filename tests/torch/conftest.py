"""Tests that run torch and Ultralytics in this process: `.venv-export/bin/python -m pytest tests/torch`."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from export_pipeline.frameworks import ENVIRONMENT, OpenedModel, open_checkpoint

# Before Ultralytics is imported: it reads these then, and writes its settings.
os.environ.update(ENVIRONMENT)
_settings = tempfile.mkdtemp(prefix="ultralytics-")
os.environ["YOLO_CONFIG_DIR"] = _settings
atexit.register(shutil.rmtree, _settings, ignore_errors=True)

SAMPLE = Path(__file__).parents[2] / "export_pipeline" / "sample" / "shapes.pt"


@pytest.fixture(scope="session")
def sample() -> OpenedModel:
    """The committed detector: circle, square, triangle, star at 320 x 320."""
    return open_checkpoint(SAMPLE)


@pytest.fixture(scope="session")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], OpenedModel]:
    """An opened checkpoint of this family and task, made once."""
    from tests.torch.networks import make_network, save_checkpoint

    folder = tmp_path_factory.mktemp("checkpoints")
    made: dict[tuple[str, str], OpenedModel] = {}

    def open_one(family: str, task_type: str) -> OpenedModel:
        if (family, task_type) not in made:
            network = make_network(family, task_type).half()
            path = save_checkpoint(folder / f"{family}-{task_type}.pt", network)
            made[family, task_type] = open_checkpoint(path)
        return made[family, task_type]

    return open_one
