"""One finished export that several rooms of tests look at."""

from __future__ import annotations

import pytest

from tests.support.exports import FinishedExport, finish_export


@pytest.fixture(scope="session")
def finished_export(tmp_path_factory: pytest.TempPathFactory) -> FinishedExport:
    """The sample, exported and published by a real process. Not to be changed."""
    return finish_export(tmp_path_factory.mktemp("finished_export"))
