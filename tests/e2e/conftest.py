"""One real stack for all end-to-end tests: Redis, Triton, Ray Serve behind HAProxy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.stack import ROOT, Stack, running_stack

BODY_TIMEOUT_SECONDS = 2


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    run_directory = tmp_path_factory.mktemp("stack") / ".run"
    with running_stack(run_directory, BODY_TIMEOUT_SECONDS=str(BODY_TIMEOUT_SECONDS)) as stack:
        yield stack


@pytest.fixture
def sample() -> Path:
    return ROOT / "model_repo" / "shapes" / "sample.jpg"
