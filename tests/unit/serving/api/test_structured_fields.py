"""What we write, another implementation of RFC 9651 reads as it was meant; and it reads what we read."""

from __future__ import annotations

import pytest
from http_sf import StructuredFieldError
from hypothesis import example, given
from hypothesis import strategies as st

from serving.api.structured_fields import LARGEST_INTEGER, parsed_string, serialised_list
from tests.support.structured_fields import read_item, read_list

PRINTABLE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E))
KEYS = st.from_regex(r"[a-z*][a-z0-9_\-.*]{0,10}", fullmatch=True)
VALUES = st.integers(-LARGEST_INTEGER, LARGEST_INTEGER) | PRINTABLE
ITEMS = st.tuples(PRINTABLE, st.dictionaries(KEYS, VALUES, max_size=4))


@given(st.lists(ITEMS, min_size=1, max_size=4))
@example([('say "so" \\', {"q": 0, "qu": ""})])
def test_a_list_is_read_back_by_another_parser(items: list[tuple[str, dict[str, int | str]]]) -> None:
    assert read_list(serialised_list(items)) == items


@pytest.mark.parametrize(
    "items",
    [
        [],
        [("naïve", {})],
        [("line\nbreak", {})],
        [("tab\t", {})],
        [("a", {"Q": 1})],
        [("a", {"1q": 1})],
        [("a", {"": 1})],
        [("a", {"q": True})],
        [("a", {"q": LARGEST_INTEGER + 1})],
        [("a", {"q": -LARGEST_INTEGER - 1})],
        [("a", {"q": "ö"})],
    ],
)
def test_what_has_no_form_is_not_written(items: list[tuple[str, dict[str, int | str]]]) -> None:
    with pytest.raises(ValueError, match=r"."):
        serialised_list(items)


@given(
    st.text(st.characters(min_codepoint=0, max_codepoint=0xFF))
    | st.text(st.sampled_from('"\\ab ;=,')).map('"{}"'.format)
    | PRINTABLE.map('"{}"'.format)
)
@example('""')
@example(' "a" ')
@example('"a";b=1')
@example('"a", "b"')
@example('"a\\"b\\\\"')
@example('"a\\b"')
@example("")
def test_a_string_is_read_as_another_parser_reads_it(text: str) -> None:
    assert parsed_string(text) == _read_by_the_other(text)


def _read_by_the_other(text: str) -> str | None:
    try:
        value, parameters = read_item(text)
    except StructuredFieldError:
        return None
    # A token is read as another type; parameters have no place in an Idempotency-Key.
    return value if type(value) is str and not parameters else None
