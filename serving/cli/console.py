"""Where the command writes: answers to stdout, everything else to stderr."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

out = Console()
errors = Console(stderr=True)


def shown(text: str) -> str:
    """Text of others, as markup that shows it: no tags, and nothing that a terminal would obey."""
    return escape("".join(each if each.isprintable() else ascii(each)[1:-1] for each in text))
