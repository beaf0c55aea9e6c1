"""HTTP's structured fields as an implementation of RFC 9651 reads them that is not ours."""

from __future__ import annotations

from typing import Any

from http_sf import parse

Parameters = dict[str, Any]


def read_list(field_value: str) -> list[tuple[Any, Parameters]]:
    """Raises StructuredFieldError."""
    items: Any = parse(field_value.encode("latin-1"), tltype="list")
    return list(items)


def read_item(field_value: str) -> tuple[Any, Parameters]:
    """Raises StructuredFieldError."""
    item: Any = parse(field_value.encode("latin-1"), tltype="item")
    value, parameters = item
    return value, parameters
