"""Where there is nothing to confine with, nothing is confined by halves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from export_pipeline.confinement import landlock, over_memory, require_confinable, seccomp
from export_pipeline.errors import ExportError
from export_pipeline.request import GIBIBYTE

OLD_KERNEL = """
import os, sys
from pathlib import Path
from export_pipeline.confinement import landlock
from export_pipeline.confinement import confine

own, other = Path(sys.argv[1]), Path(sys.argv[2])
landlock.abi = lambda: 1
confine(own, [other], 1 << 30)
(own / "mine").write_text("kept")
for attempt in (
    lambda: os.truncate(other, 0),
    lambda: os.open(other, os.O_TRUNC),
    lambda: other.open("a"),
    lambda: os.kill(os.getppid(), 0),
    lambda: os.fork(),
):
    try:
        attempt()
        print("succeeded")
    except OSError as exc:
        print(type(exc).__name__)
print(other.read_text())
"""


@pytest.mark.parametrize(
    ("module", "name", "answer"), [(landlock, "abi", 0), (seccomp, "is_supported", False)]
)
def test_it_is_refused_with_a_way_out(
    module: object, name: str, answer: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, name, lambda: answer)

    with pytest.raises(ExportError, match=r"cannot confine.*can be exported unconfined"):
        require_confinable()


@pytest.mark.skipif(landlock.abi() == 0, reason="this kernel has no Landlock")
def test_the_first_landlock_is_enough(tmp_path: Path) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    own.mkdir()
    other.write_text("whole")

    answer = subprocess.run(
        [sys.executable, "-c", OLD_KERNEL, str(own), str(other)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert answer.stdout.split() == ["PermissionError"] * 5 + ["whole"], answer.stderr
    assert (own / "mine").read_text() == "kept"


def test_the_sentence_names_the_limit() -> None:
    assert over_memory(3 * GIBIBYTE // 2) == "The export needs more memory than its limit of 1.5 GiB."
