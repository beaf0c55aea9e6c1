"""What pydantic finds wrong with a request, as the error that its sender is told."""

from __future__ import annotations

from pydantic import ValidationError

from serving.errors import InvalidRequest


def invalid(exc: ValidationError) -> InvalidRequest:
    """Every finding, by field; the offending input itself is left out, it may be a picture."""
    findings = exc.errors(include_url=False, include_input=False, include_context=False)
    return InvalidRequest(
        "; ".join(
            ": ".join(filter(None, [".".join(str(part)[:50] for part in finding["loc"]), finding["msg"]]))
            for finding in findings[:10]
        )
    )
