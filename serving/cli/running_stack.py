"""`.run/gateway.json`: how commands find a running stack. Written once it is ready, gone when it stops."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from serving.errors import OperatorError

FILE_NAME = "gateway.json"


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


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
