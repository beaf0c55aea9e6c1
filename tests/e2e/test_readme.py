"""The README's commands and snippets, run as they stand there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.support.stack import ROOT, Stack

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def checkout(stack: Stack, tmp_path: Path) -> Path:
    """A folder that looks like the README's reader's, with the running stack as its `.run`."""
    (tmp_path / ".run").symlink_to(stack.run_directory)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    # A copy: one of the blocks publishes a model.
    shutil.copytree(ROOT / "model_repo", tmp_path / "model_repo")
    for folder in ("export_pipeline", "tests"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    return tmp_path


PROMISED = {"visiongate-export": "1 is the default", "usage reconcile": "They agree"}
"""By what stands in a block; every other finds the star in the sample picture."""


def test_there_are_blocks_to_run() -> None:
    assert [language for language, _ in BLOCKS] == ["bash", "python", "bash", "bash", "bash"]


@pytest.mark.parametrize(("language", "code"), BLOCKS)
def test_a_block_runs_and_prints_what_it_promises(
    stack: Stack, checkout: Path, language: str, code: str
) -> None:
    interpreter = ["bash", "-euo", "pipefail", "-c"] if language == "bash" else [sys.executable, "-c"]
    result = subprocess.run(
        [*interpreter, code.replace("http://127.0.0.1:8000", stack.url)],
        cwd=checkout,
        env=dict(stack.environment),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert result.returncode == 0, result.stderr
    promised = next((words for part, words in PROMISED.items() if part in code), "star")
    assert promised in result.stdout + result.stderr


def test_the_picture_is_what_the_stack_draws_today(stack: Stack) -> None:
    shown = cv2.imread(str(ROOT / "model_repo" / "shapes" / "annotated.jpg"))
    drawn = cv2.imread(str(stack.described["annotated_image"]))

    assert shown.shape == drawn.shape
    assert np.abs(shown.astype(int) - drawn).mean() < 3  # both are JPEGs


def test_the_make_verbs_exist() -> None:
    verbs = set(re.findall(r"make ([a-z-]+)", README))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert verbs <= targets


def test_no_placeholder_is_left() -> None:
    assert re.findall(r"\b[A-Z]+_[A-Z_]+\b", re.sub(r"`[^`]*`|```.*?```", "", README, flags=re.DOTALL)) == []
