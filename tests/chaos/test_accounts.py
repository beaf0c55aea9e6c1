"""The judge of the chaos suite, on made-up books: each kind of broken promise is named, and nothing else."""

from __future__ import annotations

import orjson
import pytest

from tests.support.accounts import Entry, disagreements
from tests.support.load import Answer, Attempt, Books


def attempt(
    trace_id: str, request_id: str | None = None, *, key: str | None = None, status: int = 200
) -> Attempt:
    """request_id: of the answer; None where the connection broke."""
    answer = None
    if request_id is not None:
        answer = Answer(status, {}, orjson.dumps({"request_id": request_id}))
    return Attempt(trace_id, 1, key, 0.0, 1.0, answer)


def entry(request_id: str, trace_id: str) -> Entry:
    return Entry(request_id, trace_id, pictures=1)


@pytest.mark.parametrize(
    ("attempts", "ledger", "killed", "found"),
    [
        ([], [], [], []),
        ([attempt("t1", "r1")], [entry("r1", "t1")], [], []),
        ([attempt("t1", "r1", status=429)], [], [], []),
        ([attempt("t1")], [], ["t1"], []),  # broke before it was billed
        ([attempt("t1")], [entry("r1", "t1")], ["t1"], []),  # broke after it
        ([attempt("t1", key="k"), attempt("t2", "r1", key="k")], [entry("r1", "t1")], ["t1"], []),
        ([attempt("t1", key="k"), attempt("t2", "r2", key="k")], [entry("r2", "t2")], ["t1"], []),
        ([attempt("t1", "r1")], [], [], ["answer r1 is in the ledger 0 times"]),
        (
            [attempt("t1", "r1")],
            [entry("r1", "t1"), entry("r1", "t1")],
            [],
            ["answer r1 is in the ledger 2 times", "attempt t1 is in the ledger 2 times"],
        ),
        (
            [attempt("t1", "r1")],
            [entry("r1", "t1"), entry("r2", "t1")],  # the same request, executed and billed twice
            [],
            [
                "attempt t1 is in the ledger 2 times",
                "entry r2 was seen by nobody, and its connection did not break in a kill",
            ],
        ),
        ([], [entry("r1", "t1")], [], ["entry r1 belongs to no attempt"]),
        (
            [attempt("t1", "r1", status=503)],
            [entry("r1", "t1")],
            ["t1"],
            ["entry r1 was seen by nobody, and its connection did not break in a kill"],
        ),
        (
            [attempt("t1")],
            [entry("r1", "t1")],
            [],  # it broke by itself
            ["entry r1 was seen by nobody, and its connection did not break in a kill"],
        ),
        (
            [attempt("t1", key="k"), attempt("t2", "r2", key="k")],
            [entry("r1", "t1"), entry("r2", "t2")],
            ["t1"],
            ["Idempotency-Key k was billed 2 times"],
        ),
        (
            [attempt("t1", "r1", key="k"), attempt("t2", "r2", key="k")],
            [entry("r1", "t1"), entry("r2", "t2")],
            [],
            ["Idempotency-Key k got 2 different answers", "Idempotency-Key k was billed 2 times"],
        ),
    ],
)
def test_every_broken_promise_is_named(
    attempts: list[Attempt], ledger: list[Entry], killed: list[str], found: list[str]
) -> None:
    assert disagreements(Books(attempts), ledger, under_way_at_kills=killed) == found
