"""What names a request, and what makes two of them the same one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from serving.api.idempotency_field import HASHED_AT_ONCE_BYTES, idempotency_key, named
from serving.domain.inference import InferenceRequest
from serving.errors import InvalidRequest, PictureUndecodable

UUID = "8e03978e-40d5-43e8-bc93-6894a57f9324"
ASKED = InferenceRequest(
    request_id="r",
    model="shapes",
    pictures=(b"one", b"two"),
    single=False,
    deadline=1.0,
    trace_id="t",
    confidence_threshold=0.5,
)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ([], None),
        ([f'"{UUID}"'], UUID),
        ([UUID], UUID),
        (['"with \\"quotes\\" and \\\\"'], 'with "quotes" and \\'),
        (["a/b:c~d"], "a/b:c~d"),
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
        ['"a";version=1'],
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
        {"classes": (1,)},
    ],
)
async def test_another_request_has_another_fingerprint(change: dict[str, Any]) -> None:
    changed = replace(ASKED, **change)
    assert (await named("k", changed)).fingerprint != (await named("k", ASKED)).fingerprint


async def test_a_picture_is_not_taken_for_the_word_of_one_that_is_unusable() -> None:
    said, meant = (b"unusable", b"two"), (PictureUndecodable("two"),)
    first, second = [await named("k", replace(ASKED, pictures=pictures)) for pictures in (said, meant)]
    assert first.fingerprint != second.fingerprint


async def test_classes_that_differ_in_kind_differ() -> None:
    by_name, by_id = (replace(ASKED, classes=(each,)) for each in ("1", 1))
    assert (await named("k", by_name)).fingerprint != (await named("k", by_id)).fingerprint


async def test_the_same_question_asked_again_is_the_same_request() -> None:
    """Whenever it comes, under whatever id, and however large it is."""
    again = replace(ASKED, request_id="s", deadline=2.0, trace_id="u")
    assert await named("k", again) == await named("k", ASKED)

    large = replace(ASKED, pictures=(b"x" * HASHED_AT_ONCE_BYTES, b"y"))
    assert await named("k", large) == await named("k", replace(large, request_id="s"))
    assert (await named("k", large)).fingerprint != (await named("k", ASKED)).fingerprint
