"""The guard as a whole is tested through `ManagedProcess`, its only user; here is what it reads."""

from __future__ import annotations

import os
import subprocess
import sys

from serving.process_guard import children_of


def test_a_process_without_children_has_none() -> None:
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert children_of(child.pid) == {}


def test_children_are_told_with_their_state() -> None:
    with (
        subprocess.Popen([sys.executable, "-I", "-S", "-c", "input()"], stdin=subprocess.PIPE) as living,
        subprocess.Popen(["true"], stdout=subprocess.PIPE) as ended,
    ):
        assert ended.stdout is not None
        ended.stdout.read()
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)

        states = children_of(os.getpid())

        assert states[ended.pid] == "Z"
        assert states[living.pid] != "Z"
