"""What a job says while it works: one JSON line an event, from the isolated process to whoever waits for it.

::

    {"step": "export.graph", "kind": "began", "message": "", "fraction": null}
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, Protocol

from pydantic import Field

from export_pipeline.facts import Facts


class Event(Facts):
    """fraction: of the step, 0 to 1, where it can tell. done_before: found finished, and not run again."""

    step: str
    kind: Literal["began", "working", "done", "done_before"]
    message: str = ""
    fraction: Annotated[float, Field(allow_inf_nan=False)] | None = None

    @property
    def stage(self) -> str:
        return self.step.partition(".")[0]


Progress = Callable[[Event], None]
"""Takes each event as it happens. Must not raise."""


class Say(Protocol):
    """How a step reports from inside."""

    def __call__(self, message: str, fraction: float | None = None) -> None:
        """message: for a person. fraction: of the step, that is behind it."""
