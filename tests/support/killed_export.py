"""`visiongate-export` that ends itself with SIGKILL at an event, not a moment before or after.

    python -m tests.support.killed_export STEP/KIND,STEP/KIND,… ARGUMENT…

It is killed at its first event that is not among those given. Everything else is the command's own.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from export_pipeline.cli import display, main


def kill_at_first_event_beside(spared: set[str]) -> None:
    tell = display._line

    def tell_and_die(values: dict[str, Any]) -> None:
        tell(values)
        if "step" in values and values["kind"] != "done_before":
            point = f"{values['step']}/{values['kind']}"
            if point not in spared:
                os.kill(os.getpid(), signal.SIGKILL)

    display._line = tell_and_die


if __name__ == "__main__":
    spared = set(sys.argv[1].split(","))
    sys.argv = ["visiongate-export", *sys.argv[2:]]
    kill_at_first_event_beside(spared)
    main()
