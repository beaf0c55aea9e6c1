"""Events outlive the version that wrote them, in both directions."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from serving.adapters.usage_codec import FORM, LaterForm, decode, encode
from tests.support.usage_events import make_event

EVENT = make_event(model_version=None)


def written(**changes: Any) -> bytes:
    return orjson.dumps(orjson.loads(encode(EVENT)) | changes)


def test_an_event_comes_back_as_it_was() -> None:
    assert decode(encode(EVENT)) == EVENT


def test_fields_that_a_newer_gateway_added_are_left_out() -> None:
    assert decode(written(carbon_grams=3, admitted_by={"region": "north"})) == EVENT


@pytest.mark.parametrize(
    "data",
    [
        written(form=FORM + 1),
        orjson.dumps({"form": FORM + 1, "entirely": "different"}),
    ],
)
def test_a_later_form_is_told_from_damage(data: bytes) -> None:
    with pytest.raises(LaterForm):
        decode(data)


@pytest.mark.parametrize(
    "data",
    [
        written(form=FORM - 1),
        written(form=str(FORM + 1)),
        written(form=FORM + 0.5),
        written(form=None),
        written(admitted_at="today"),
        orjson.dumps({"form": FORM}),
        b"[]",
        b"7",
        b"?",
    ],
)
def test_what_no_gateway_wrote_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="usage event") as caught:
        decode(data)

    assert not isinstance(caught.value, LaterForm)
