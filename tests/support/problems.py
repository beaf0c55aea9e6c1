"""What every refusal over HTTP looks like: RFC 9457, with our two fields, and which limit was reached."""

from __future__ import annotations

import httpx


def assert_problem(response: httpx.Response, status: int, code: str) -> None:
    assert response.headers["Content-Type"] == "application/problem+json"
    problem = response.json()
    assert (response.status_code, problem["status"], problem["code"]) == (status, status, code)
    named = ["violated-policies"] if status == 429 else []
    assert set(problem) == {"type", "title", "status", "detail", "instance", "code", "request_id", *named}
    assert problem["request_id"] == response.headers["X-Request-ID"]
    assert "Server-Timing" in response.headers
