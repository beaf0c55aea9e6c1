"""What clients' books and the ledger have to say of each other, whatever was killed meanwhile."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from tests.support.load import Attempt, Books


@dataclass(frozen=True, slots=True)
class Entry:
    """A usage event as the ledger has it. trace_id: the client's own, of the attempt that is billed."""

    request_id: str
    trace_id: str
    pictures: int


def disagreements(
    books: Books, ledger: Sequence[Entry], *, under_way_at_kills: Collection[str] = ()
) -> list[str]:
    """Each broken promise in a sentence; none where all were kept.

    under_way_at_kills: trace ids of the attempts that a gateway had when it was killed. They alone may be
    billed without their client having seen the answer.
    """
    return [
        *_answers_not_billed_once(books, ledger),
        *_entries_nobody_asked_for(books, ledger, frozenset(under_way_at_kills)),
        *_repetitions_not_alike(books, ledger),
    ]


def _answers_not_billed_once(books: Books, ledger: Sequence[Entry]) -> Iterator[str]:
    entries = Counter(entry.request_id for entry in ledger)
    for request_id in sorted({answer.request_id for _, answer in books.answered()}):
        if entries[request_id] != 1:
            yield f"answer {request_id} is in the ledger {entries[request_id]} times"


def _entries_nobody_asked_for(
    books: Books, ledger: Sequence[Entry], under_way_at_kills: Collection[str]
) -> Iterator[str]:
    attempts = {attempt.trace_id: attempt for attempt in books.attempts}
    seen = {answer.request_id for _, answer in books.answered()}
    for trace_id, count in Counter(entry.trace_id for entry in ledger).items():
        if count != 1:
            yield f"attempt {trace_id} is in the ledger {count} times"
    for entry in ledger:
        attempt = attempts.get(entry.trace_id)
        if attempt is None:
            yield f"entry {entry.request_id} belongs to no attempt"
        elif entry.request_id not in seen and not _may_be_unseen(attempt, under_way_at_kills):
            yield f"entry {entry.request_id} was seen by nobody, and its connection did not break in a kill"


def _may_be_unseen(attempt: Attempt, under_way_at_kills: Collection[str]) -> bool:
    return attempt.has_broken and attempt.trace_id in under_way_at_kills


def _repetitions_not_alike(books: Books, ledger: Sequence[Entry]) -> Iterator[str]:
    bodies, traces = defaultdict(set), defaultdict(set)
    for attempt in books.attempts:
        if attempt.idempotency_key is not None:
            traces[attempt.idempotency_key].add(attempt.trace_id)
            if attempt.answer is not None and attempt.is_answered:
                bodies[attempt.idempotency_key].add(attempt.answer.body)
    billed = {entry.trace_id for entry in ledger}
    for key, of_key in traces.items():
        if len(bodies[key]) > 1:
            yield f"Idempotency-Key {key} got {len(bodies[key])} different answers"
        if (times := len(billed & of_key)) > 1:
            yield f"Idempotency-Key {key} was billed {times} times"
