"""The last stage: from the job's folder into the repository."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from export_pipeline.errors import BadInput
from export_pipeline.job import JobFolder, JobRecord
from export_pipeline.repository import list_versions
from export_pipeline.stages.publish import publish
from tests.support.export_jobs import certify, make_job
from tests.support.packages import say_nothing, write_package


def packaged(path: Path, repository: Path | None, **job: object) -> tuple[JobFolder, JobRecord]:
    folder, record = make_job(path, publish=repository, **job)  # type: ignore[arg-type]  # options of several types
    write_package(folder, record, validation=certify(folder))
    return folder, record


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


def test_it_leaves_a_record_and_may_be_done_again(tmp_path: Path, repository: Path) -> None:
    folder, record = packaged(tmp_path / "job", repository)

    publish(folder, record, say_nothing)
    first = (folder.path / "published.json").read_bytes()
    (folder.path / "published.json").unlink()
    publish(folder, record, say_nothing)

    assert json.loads(first) == {"repository": str(repository), "name": "shapes", "version": 1}
    assert (folder.path / "published.json").read_bytes() == first
    assert [each.version for each in list_versions(repository, "shapes")] == [1]


def test_a_new_version_has_to_be_asked_for(tmp_path: Path, repository: Path) -> None:
    publish(*packaged(tmp_path / "first", repository), say_nothing)
    second = packaged(tmp_path / "second", repository, version=2, checkpoint="b.pt")
    with pytest.raises(BadInput, match="name shapes is taken"):
        publish(*second, say_nothing)
    assert not (tmp_path / "second/published.json").exists()

    third = packaged(tmp_path / "third", repository, version=2, checkpoint="b.pt", new_version=True)
    publish(*third, say_nothing)

    assert [(each.version, each.is_default) for each in list_versions(repository, "shapes")] == [
        (1, False),
        (2, True),
    ]


def test_a_job_without_a_repository(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no repository"):
        publish(*packaged(tmp_path / "job", None), say_nothing)
