from __future__ import annotations

from dataclasses import replace

import pytest

from serving.adapters import answer_codec
from serving.domain.inference import RenderedAnswer


@pytest.mark.parametrize(
    "answer",
    [
        RenderedAnswer(b"", {}),
        RenderedAnswer(b"\n\n{}\n", {}),  # the first end of line is not the body's
        RenderedAnswer(bytes(range(256)), {"content-type": "image/jpeg", "x": 'é "quoted"\n'}),
    ],
)
def test_an_answer_comes_back_as_it_was_but_marked(answer: RenderedAnswer) -> None:
    assert answer_codec.decode(answer_codec.encode(answer)) == replace(answer, replayed=True)


def test_what_repeats_itself_is_stored_small() -> None:
    box = b'{"class":"circle","class_id":0,"confidence":0.9,"bbox":[1.0,2.0,3.0,4.0]},'

    assert len(answer_codec.encode(RenderedAnswer(box * 100, {}))) < 5 * len(box)
