"""Every ABI of Landlock is asked only for what it knows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from export_pipeline.confinement import landlock
from export_pipeline.confinement.landlock import Access, handled

NEEDS_LANDLOCK = pytest.mark.skipif(landlock.abi() == 0, reason="this kernel has no Landlock")

RESTRICTED = """
import ctypes, sys
from pathlib import Path
from export_pipeline.confinement import landlock
from export_pipeline.confinement.landlock import Access

landlock.abi = lambda: int(sys.argv[1])
own = Path(sys.argv[2])
no_new_privileges = 38
ctypes.CDLL(None).prctl(no_new_privileges, 1, 0, 0, 0)
landlock.restrict({own / "lent": Access.READ, own / "a_file": Access.READ, own / "missing": Access.READ})
print((own / "lent" / "file").read_text(), (own / "a_file").read_text())
try:
    (own / "other").read_text()
except PermissionError:
    print("refused")
"""


@pytest.mark.parametrize(
    ("abi", "newest", "net", "scope"),
    [
        (1, Access.MAKE_SYM, 0, 0),
        (2, Access.REFER, 0, 0),
        (3, Access.TRUNCATE, 0, 0),
        (4, Access.TRUNCATE, 3, 0),
        (5, Access.IOCTL_DEV, 3, 0),
        (6, Access.IOCTL_DEV, 3, 3),
        (7, Access.IOCTL_DEV, 3, 3),
        (99, Access.IOCTL_DEV, 3, 3),
    ],
)
def test_what_an_abi_can_refuse(abi: int, newest: Access, net: int, scope: int) -> None:
    assert handled(abi) == (Access(newest.value * 2 - 1), net, scope)


def test_no_right_to_write_makes_what_leads_elsewhere() -> None:
    for kind in (Access.MAKE_SYM, Access.MAKE_SOCK, Access.MAKE_FIFO, Access.MAKE_CHAR, Access.MAKE_BLOCK):
        assert not Access.WRITE & kind
    assert not Access.READ_AND_RUN & Access.WRITE_FILE


@NEEDS_LANDLOCK
@pytest.mark.parametrize("abi", range(1, min(landlock.abi(), 7) + 1))
def test_the_kernel_takes_the_rules_of_each_abi(abi: int, tmp_path: Path) -> None:
    (tmp_path / "lent").mkdir()
    for name in ("lent/file", "a_file", "other"):
        (tmp_path / name).write_text(name)

    answer = subprocess.run(
        [sys.executable, "-c", RESTRICTED, str(abi), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert answer.stdout.split() == ["lent/file", "a_file", "refused"], answer.stderr
