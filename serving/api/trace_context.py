"""`traceparent` (https://www.w3.org/TR/trace-context/): which trace of the client's a request belongs to."""

from __future__ import annotations

import re
from collections.abc import Sequence

# A later version may add to the end what this one does not know; the first four parts stay.
_FORM = re.compile(
    r"(?P<version>[0-9a-f]{2})-(?P<trace_id>[0-9a-f]{32})-(?P<parent_id>[0-9a-f]{16})-[0-9a-f]{2}(?P<more>-.*)?"
)


def trace_id(field_values: Sequence[str]) -> str | None:
    """32 hexadecimal digits; None where the field is not there, or there twice, or not valid.

    An invalid one is as good as none (section 3.2.2.5): a trace is no reason to refuse a picture.
    """
    if len(field_values) != 1:
        return None
    match = _FORM.fullmatch(field_values[0])
    if match is None or match["version"] == "ff" or (match["version"] == "00" and match["more"]):
        return None
    if not (int(match["trace_id"], 16) and int(match["parent_id"], 16)):
        return None
    return match["trace_id"]
