"""Lua files as Redis runs them: the clock in front, then what they share, then the verb itself."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from importlib import resources


def _read(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


CLOCK = _read("clock.lua")
"""Defines `now_microseconds()`."""


@dataclass(frozen=True)
class Script:
    """One script's text. Redis knows it by its SHA-1 once it has run it, until it is started again."""

    name: str
    text: str

    @classmethod
    def load(cls, name: str, *, clock: str = CLOCK, shared: tuple[str, ...] = ()) -> Script:
        """name, shared: of files beside this one, without `.lua`; `shared` come between clock and script."""
        return cls(name, "\n".join((clock, *(_read(f"{each}.lua") for each in (*shared, name)))))

    @functools.cached_property
    def sha1(self) -> str:
        return hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()
