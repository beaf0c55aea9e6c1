from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from serving.cli.running_stack import FILE_NAME, RunningStack, the_only_stack_in
from serving.errors import OperatorError

STACK = RunningStack(
    url="http://127.0.0.1:8000",
    api_key="pk_a_b",
    admin_token="admin",
    triton_url="grpc://127.0.0.1:8011",
    redis_url="redis://127.0.0.1:6390/0",
    metrics_url="http://127.0.0.1:9102/metrics",
    dashboard_url="http://127.0.0.1:8265",
    dashboard_token="ray",
    annotated_image="",
    pid=os.getpid(),
)


def test_what_was_saved_is_found_by_its_owner_only(tmp_path: Path) -> None:
    path = STACK.save(tmp_path)
    path.chmod(0o644)
    STACK.save(tmp_path)

    assert RunningStack.find(tmp_path) == STACK
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in tmp_path.iterdir()] == [FILE_NAME]


@pytest.mark.parametrize(
    "content", [None, "", "[]", "{}", '{"url": "http://127.0.0.1:8000"}', '{"url"'], ids=repr
)
def test_where_none_is_described_the_way_to_one_is_told(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / FILE_NAME).write_text(content)

    with pytest.raises(OperatorError, match="start one with `visiongate up`"):
        RunningStack.find(tmp_path)


def test_a_field_of_a_later_version_does_no_harm(tmp_path: Path) -> None:
    path = STACK.save(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"later": 1}))

    assert RunningStack.find(tmp_path) == STACK


def test_one_that_has_died_is_said_to_have_died(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    replace(STACK, pid=process.pid).save(tmp_path)

    with pytest.raises(OperatorError, match="has died"):
        RunningStack.find(tmp_path)


def test_a_second_stack_in_the_same_directory_is_refused(tmp_path: Path) -> None:
    with (
        the_only_stack_in(tmp_path / "run"),
        pytest.raises(OperatorError, match="already"),
        the_only_stack_in(tmp_path / "run"),
    ):
        pytest.fail("two stacks run in one directory")

    with the_only_stack_in(tmp_path / "run"):
        pass


def test_what_a_killed_stack_has_left_is_forgotten(tmp_path: Path) -> None:
    STACK.save(tmp_path)

    with the_only_stack_in(tmp_path):
        assert not (tmp_path / FILE_NAME).exists()
