"""Which `traceparent` gives an event its trace id, and which is as good as none."""

from __future__ import annotations

import pytest

from serving.api.trace_context import trace_id

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([], None),
        ([""], None),
        ([f"00-{TRACE}-{PARENT}-01"], TRACE),
        ([f"00-{TRACE}-{PARENT}-00"], TRACE),
        ([f"00-{TRACE}-{PARENT}-ff"], TRACE),  # flags that nobody knows yet
        ([f"cc-{TRACE}-{PARENT}-01"], TRACE),  # a version that nobody knows yet
        ([f"cc-{TRACE}-{PARENT}-01-what-the-future-brings"], TRACE),
        ([f"cc-{TRACE}-{PARENT}-01.what"], None),
        ([f"00-{TRACE}-{PARENT}-01-more"], None),
        ([f"00-{TRACE}-{PARENT}-01-"], None),
        ([f"ff-{TRACE}-{PARENT}-01"], None),
        ([f"00-{'0' * 32}-{PARENT}-01"], None),
        ([f"00-{TRACE}-{'0' * 16}-01"], None),
        ([f"00-{TRACE.upper()}-{PARENT}-01"], None),
        ([f"00-{TRACE[:-1]}-{PARENT}-01"], None),
        ([f"00-{TRACE}-{PARENT}-1"], None),
        ([f"00-{TRACE}-{PARENT}"], None),
        ([f"0-{TRACE}-{PARENT}-01"], None),
        ([f"00-{TRACE}-{PARENT}-01\n"], None),
        ([f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-01"], None),
    ],
)
def test_a_valid_traceparent_names_the_trace_and_no_other_does(values: list[str], found: str | None) -> None:
    assert trace_id(values) == found
