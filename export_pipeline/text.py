"""Text that somebody else has written, before it reaches a terminal, a file for people or a contract."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import AfterValidator, Field

MOST_NAME_CHARACTERS: Final = 200


def printable(text: str) -> str:
    """Without the characters that move a terminal's cursor, or worse; line ends stay."""
    return "".join(each if each.isprintable() or each == "\n" else " " for each in text)


def require_class_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Raises ValueError unless each is printable, 1 to 200 characters long, and no other's."""
    for name in names:
        if not (name.strip() and name.isprintable() and len(name) <= MOST_NAME_CHARACTERS):
            raise ValueError(f"a class's name is 1 to 200 printable characters; {name[:50]!a} is not")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two classes are named {twice!r}")
    return names


def _require_printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("not printable")
    return text


PlainText = Annotated[str, Field(max_length=1000), AfterValidator(_require_printable)]
"""A line for people."""
