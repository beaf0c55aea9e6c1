"""What names a request, and what makes two of them the same one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from serving.api.idempotency_field import HASHED_AT_ONCE_BYTES, idempotency_key, named
from serving.domain.inference import InferenceRequest
from serving.domain.tenant import Principal
from serving.errors import InvalidRequest, PictureUndecodable
from serving.threads import PriorityThreads
from tests.support.tiers import make_tier

UUID = "8e03978e-40d5-43e8-bc93-6894a57f9324"
ASKED = InferenceRequest(
    request_id="r",
    model="shapes",
    pictures=(b"one", b"two"),
    received_bytes=6,
    single=False,
    deadline=1.0,
    trace_id="t",
    confidence_threshold=0.5,
)


def caller(*models: str) -> Principal:
    """models: that the key may use; none is any."""
    return Principal("key_a", "ada", make_tier(), frozenset(models) or None)


ANYBODY = caller()


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ([], None),
        ([f'"{UUID}"'], UUID),
        ([UUID], UUID),
        (['"with \\"quotes\\" and \\\\"'], 'with "quotes" and \\'),
        (["a/b:c~d"], "a/b:c~d"),
        (['"a";version=1'], "a"),
        (["x" * 255], "x" * 255),
        (['"' + "x" * 255 + '"'], "x" * 255),
    ],
)
def test_a_string_and_a_bare_token_name_a_request(values: list[str], key: str | None) -> None:
    assert idempotency_key(values) == key


@pytest.mark.parametrize(
    "values",
    [
        [""],
        ['""'],
        ['"'],
        ['"open'],
        ["two words"],
        ['"a", "b"'],
        ["a,b"],
        ['"a";Version=1'],
        ["naïve"],
        ['"naïve"'],
        ['"back\\slash"'],
        ["x" * 256],
        ['"' + "x" * 256 + '"'],
        [UUID, UUID],
    ],
)
def test_anything_else_is_refused(values: list[str]) -> None:
    with pytest.raises(InvalidRequest, match="Idempotency-Key"):
        idempotency_key(values)


@given(st.text(max_size=300))
@example("a" * 300)
def test_whatever_comes_is_a_key_or_refused(text: str) -> None:
    try:
        key = idempotency_key([text])
    except InvalidRequest:
        return
    assert key is not None
    assert 1 <= len(key) <= 255
    assert key.isascii()
    assert key.isprintable()


@pytest.fixture
async def threads() -> AsyncIterator[PriorityThreads]:
    with ThreadPoolExecutor(1) as executor:
        yield PriorityThreads(executor, 1)


async def fingerprint_of(
    request: InferenceRequest, threads: PriorityThreads, *, principal: Principal = ANYBODY
) -> str:
    return (await named("k", request, principal=principal, threads=threads)).fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"model": None},
        {"model": "other"},
        {"single": True},
        {"pictures": (b"one",)},
        {"pictures": (b"two", b"one")},
        {"pictures": (b"on", b"etwo")},
        {"pictures": (b"one", b"two", b"")},
        {"pictures": (b"one", PictureUndecodable("two"))},
        {"confidence_threshold": None},
        {"confidence_threshold": 0.25},
        {"iou_threshold": 0.5},
        {"max_detections": 1},
        {"classes": ()},
        {"classes": ("1",)},
    ],
)
async def test_another_request_has_another_fingerprint(
    change: dict[str, Any], threads: PriorityThreads
) -> None:
    assert await fingerprint_of(replace(ASKED, **change), threads) != await fingerprint_of(ASKED, threads)


async def test_a_picture_is_not_taken_for_the_word_of_one_that_is_unusable(threads: PriorityThreads) -> None:
    said, meant = (b"unusable", b"two"), (PictureUndecodable("two"),)
    first, second = [
        await fingerprint_of(replace(ASKED, pictures=pictures), threads) for pictures in (said, meant)
    ]
    assert first != second


@pytest.mark.parametrize(
    ("one", "other", "are_the_same"),
    [
        ((1,), ("1",), True),  # in JSON, and in a query
        (("cat", "dog"), ("dog", "cat"), True),
        (("cat", "cat"), ("cat",), True),
        ((2, 10), ("10", "2"), True),
        (("cat",), ("dog",), False),
        (("cat", "dog"), ("cat,dog",), False),
        ((), None, False),
    ],
)
async def test_classes_are_a_set_of_words(
    one: tuple[str | int, ...],
    other: tuple[str | int, ...] | None,
    are_the_same: bool,
    threads: PriorityThreads,
) -> None:
    first, second = [await fingerprint_of(replace(ASKED, classes=each), threads) for each in (one, other)]
    assert (first == second) is are_the_same


@pytest.mark.parametrize(
    ("principal", "are_the_same"),
    [
        (caller("shapes"), True),
        (caller("other"), False),
        (caller("shapes", "other"), False),
        (ANYBODY, False),
    ],
)
async def test_the_only_model_of_a_key_may_be_left_out(
    principal: Principal,
    are_the_same: bool,
    threads: PriorityThreads,
) -> None:
    named_it = await fingerprint_of(ASKED, threads, principal=principal)
    left_it_out = await fingerprint_of(replace(ASKED, model=None), threads, principal=principal)
    assert (named_it == left_it_out) is are_the_same


async def test_the_same_question_asked_again_is_the_same_request(threads: PriorityThreads) -> None:
    """Whenever it comes, under whatever id, in however long a body, and however large its pictures are."""
    again = replace(ASKED, request_id="s", deadline=2.0, trace_id="u", received_bytes=99)
    assert await fingerprint_of(again, threads) == await fingerprint_of(ASKED, threads)

    large = replace(ASKED, pictures=(b"x" * HASHED_AT_ONCE_BYTES, b"y"))
    other = replace(ASKED, pictures=(b"x" * HASHED_AT_ONCE_BYTES, b"z"))
    assert await fingerprint_of(large, threads) == await fingerprint_of(
        replace(large, request_id="s"), threads
    )
    assert await fingerprint_of(large, threads) != await fingerprint_of(other, threads)


@pytest.mark.parametrize(
    ("picture_bytes", "in_a_thread"), [(HASHED_AT_ONCE_BYTES, 0), (HASHED_AT_ONCE_BYTES + 1, 1)]
)
async def test_only_much_to_hash_is_a_threads(picture_bytes: int, in_a_thread: int) -> None:
    """However long the body was that it came in."""
    large = replace(ASKED, pictures=(b"x" * picture_bytes,), received_bytes=2 * HASHED_AT_ONCE_BYTES)
    with ThreadPoolExecutor(1) as executor:
        submit, submitted = executor.submit, []

        def noted(*work: Any) -> Any:
            submitted.append(work)
            return submit(*work)

        executor.submit = noted  # type: ignore[method-assign,assignment]  # the same, and noted
        await fingerprint_of(large, PriorityThreads(executor, 1))

    assert len(submitted) == in_a_thread
