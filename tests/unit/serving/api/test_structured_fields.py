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
PIECES = [*"ab=;:1.-?%*", "; b=", '"x"', '"', "\\", ":YQ==:", "%c3%a4", '%"', " ", "12345"]
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
    | st.lists(st.sampled_from(PIECES), max_size=8).map(lambda pieces: '"a"' + "".join(pieces))
)
@example('""')
@example(' "a" ')
@example('"a";b=1')
@example('"a";  b="x;y";c=tok/en:1;d=?1;e=:YWI=:;f=@-5;g=-1.125;h=%"%c3%a4";i')
@example('"a";b=%"%c3"')
@example('"a";b=1.')
@example('"a";b=1.0000')
@example('"a";b=1234567890123456')
@example('"a";b=1234567890123.1')
@example('"a";b=@1.5')
@example('"a";b=?2')
@example('"a";b=:Y:')
@example('"a";b=:YWI:')
@example('"a";b=:YQ=:')
@example('"a";B=1')
@example('"a" ;b')
@example('"a";')
@example('"a";b=')
@example('"a";b,c')
@example('"a", "b"')
@example('"a\\"b\\\\"')
@example('"a\\b"')
@example("")
def test_a_string_is_read_as_another_parser_reads_it(text: str) -> None:
    assert parsed_string(text) == _read_by_the_other(text)


def _read_by_the_other(text: str) -> str | None:
    try:
        value, _ = read_item(text)
    except StructuredFieldError:
        return None
    return value if type(value) is str else None  # a token is read as another type
