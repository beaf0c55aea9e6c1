"""The bounds of what is kept in memory; what every form keeps is in `tests/contract`."""

from __future__ import annotations

import os

import pytest

from serving.adapters.memory.answers import KeptAnswers
from serving.domain.idempotency import IdempotencyKey
from serving.domain.inference import RenderedAnswer
from serving.errors import AnswerNotKept


def key(number: int) -> IdempotencyKey:
    return IdempotencyKey(f"key {number}", "f")


def kept(answers: KeptAnswers, *, of: int) -> list[int]:
    def is_kept(number: int) -> bool:
        try:
            return answers.find("key_a", key(number), 0) is not None
        except AnswerNotKept:
            return False

    return [number for number in range(of) if is_kept(number)]


def test_the_oldest_go_beyond_so_many() -> None:
    answers = KeptAnswers(max_keys=3)
    for number in range(5):
        answers.keep("key_a", key(number), f"request-{number}", RenderedAnswer(b"{}", {}), 0)

    assert kept(answers, of=5) == [2, 3, 4]


def test_the_oldest_go_beyond_so_many_bytes() -> None:
    answers = KeptAnswers(max_bytes=2500)
    for number in range(5):
        answers.keep("key_a", key(number), f"request-{number}", RenderedAnswer(os.urandom(1000), {}), 0)

    assert kept(answers, of=5) == [3, 4]
    for number in range(3):
        with pytest.raises(AnswerNotKept):
            answers.find("key_a", key(number), 0)


def test_one_that_is_too_large_leaves_the_others_where_they_are() -> None:
    answers = KeptAnswers(max_bytes=2500)
    answers.keep("key_a", key(0), "request-0", RenderedAnswer(b"{}", {}), 0)
    answers.keep("key_a", key(1), "request-1", RenderedAnswer(os.urandom(3000), {}), 0)

    assert kept(answers, of=2) == [0]


def test_what_is_kept_again_or_released_takes_its_room_once() -> None:
    answers = KeptAnswers(max_bytes=2500)
    for _ in range(10):
        answers.keep("key_a", key(0), "request-0", RenderedAnswer(os.urandom(1000), {}), 0)
    answers.claim("key_a", key(1), "request-1", 1)
    answers.release("key_a", key(1), "request-1")
    answers.keep("key_a", key(2), "request-2", RenderedAnswer(os.urandom(1000), {}), 0)

    assert kept(answers, of=3) == [0, 2]
