"""The part of RFC 9651 (Structured Field Values for HTTP) that our fields need, and not more lenient than it.

::

    "burst";q=20;w=12, "month";q=100000      a List of Strings with parameters, as we write it
    "8e03978e-40d5-43e8-bc93-6894a57f9324"   a String, as we read it, whatever parameters follow
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from urllib.parse import unquote_to_bytes

LARGEST_INTEGER = 999_999_999_999_999

_KEY = re.compile(r"[a-z*][a-z0-9_\-.*]*")
_CHARACTERS = re.compile(r"[\x20-\x7e]*")
_STRING = re.compile(r'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"')
_ESCAPED = re.compile(r"\\(.)")
_BARE_ITEM = "|".join(
    (
        r"-?[0-9]{1,12}\.[0-9]{1,3}",  # a Decimal
        r"@?-?[0-9]{1,15}",  # an Integer, a Date
        _STRING.pattern,
        r"[A-Za-z*][!#$%&'*+\-.^_`|~0-9A-Za-z:/]*",  # a Token
        r":(?!=)(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2,3})?={0,2}:",  # a Byte Sequence
        r"\?[01]",  # a Boolean
        r'%"(?P<display>(?:[\x20\x21\x23\x24\x26-\x7e]|%[0-9a-f]{2})*)"',
    )
)
_PARAMETER = re.compile(rf"; *{_KEY.pattern}(?:=(?:{_BARE_ITEM}))?")


def serialised_list(items: Iterable[tuple[str, Mapping[str, int | str]]]) -> str:
    """Of Strings, each with its parameters in their order.

    Raises ValueError for what has no form, which is also an empty list: such a field is left out.
    """
    members = [_string(name) + _parameters(parameters) for name, parameters in items]
    if not members:
        raise ValueError("an empty list has no form")
    return ", ".join(members)


def parsed_string(field_value: str) -> str | None:
    """What an Item says that is a String, without its parameters; None for anything else."""
    item = field_value.strip(" ")
    match = _STRING.match(item)
    if match is None or not _are_parameters(item[match.end() :]):
        return None
    return _ESCAPED.sub(r"\1", match[1])


def _are_parameters(text: str) -> bool:
    """Of any names and types: a recipient ignores those that it does not know (section 1.1)."""
    place = 0
    while match := _PARAMETER.match(text, place):
        place = match.end()
        try:
            unquote_to_bytes(match["display"] or "").decode()
        except UnicodeDecodeError:
            return False
    return place == len(text)


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
