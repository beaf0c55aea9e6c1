"""`.run/gateway.json`: how commands find a running stack. Written once it is ready, gone when it stops."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from serving.errors import OperatorError

FILE_NAME = "gateway.json"
LOCK_NAME = "up.lock"


@dataclass(frozen=True, slots=True)
class RunningStack:
    """`api_key` is of the top tier and allowed on every model; the next start revokes it."""

    url: str
    api_key: str
    admin_token: str
    triton_url: str
    redis_url: str
    metrics_url: str
    dashboard_url: str
    dashboard_token: str
    annotated_image: str
    pid: int

    def save(self, run_directory: Path) -> Path:
        """Appears whole or not at all, readable by its owner only: it holds secrets."""
        path = run_directory / FILE_NAME
        draft = path.with_suffix(".draft")
        draft.unlink(missing_ok=True)
        draft.touch(mode=0o600)
        draft.write_text(json.dumps(asdict(self), indent=2) + "\n")
        return draft.replace(path)

    @classmethod
    def forget(cls, run_directory: Path) -> None:
        (run_directory / FILE_NAME).unlink(missing_ok=True)

    @classmethod
    def find(cls, run_directory: Path) -> RunningStack:
        """Raises OperatorError when none runs."""
        try:
            stored = json.loads((run_directory / FILE_NAME).read_text())
            stack = cls(**{field.name: stored[field.name] for field in fields(cls)})
        except (OSError, ValueError, KeyError, TypeError):
            raise OperatorError(
                f"No stack runs from {run_directory}: start one with `visiongate up`."
            ) from None
        if not _is_alive(stack.pid):
            raise OperatorError(
                f"The stack in {run_directory} has died: start it again with `visiongate up`."
            )
        return stack


@contextmanager
def the_only_stack_in(run_directory: Path) -> Iterator[None]:
    """Raises OperatorError where another runs. What a killed one has left to be found is removed.

    The kernel lets go of the lock however we end, so there is no stale lock to clear.
    """
    run_directory.mkdir(parents=True, exist_ok=True)
    with (run_directory / LOCK_NAME).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OperatorError(f"A stack runs from {run_directory} already: stop it first.") from None
        RunningStack.forget(run_directory)
        yield


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
