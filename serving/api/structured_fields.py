"""The part of RFC 9651 (Structured Field Values for HTTP) that our fields need, and not more lenient than it.

::

    "burst";q=20;w=12, "month";q=100000      a List of Strings with parameters, as we write it
    "8e03978e-40d5-43e8-bc93-6894a57f9324"   a String, as we read it
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

LARGEST_INTEGER = 999_999_999_999_999

_KEY = re.compile(r"[a-z*][a-z0-9_\-.*]*")
_CHARACTERS = re.compile(r"[\x20-\x7e]*")
_STRING = re.compile(r'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"')
_ESCAPED = re.compile(r"\\(.)")


def serialised_list(items: Iterable[tuple[str, Mapping[str, int | str]]]) -> str:
    """Of Strings, each with its parameters in their order.

    Raises ValueError for what has no form, which is also an empty list: such a field is left out.
    """
    members = [_string(name) + _parameters(parameters) for name, parameters in items]
    if not members:
        raise ValueError("an empty list has no form")
    return ", ".join(members)


def parsed_string(field_value: str) -> str | None:
    """What an Item says that is a String without parameters; None for anything else."""
    match = _STRING.fullmatch(field_value.strip(" "))
    return None if match is None else _ESCAPED.sub(r"\1", match[1])


def _parameters(parameters: Mapping[str, int | str]) -> str:
    return "".join(f";{_key(key)}={_bare_item(value)}" for key, value in parameters.items())


@lru_cache(maxsize=64)  # of a few fields, on every answer
def _key(key: str) -> str:
    if _KEY.fullmatch(key) is None:
        raise ValueError(f"{key!r} is no key of a parameter")
    return key


def _bare_item(value: int | str) -> str:
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, bool) or abs(value) > LARGEST_INTEGER:
        raise ValueError(f"{value!r} is no integer of at most 15 digits")
    return str(value)


@lru_cache(maxsize=64)
def _string(text: str) -> str:
    if _CHARACTERS.fullmatch(text) is None:
        raise ValueError(f"{text!r} is not printable ASCII")
    return '"' + text.replace("\\", r"\\").replace('"', r"\"") + '"'
