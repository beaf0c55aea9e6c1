"""Kept answers as bytes: small, for they stay for a day."""

from __future__ import annotations

import zlib

import orjson

from serving.domain.inference import RenderedAnswer

_LEVEL = 1  # the fastest: the client waits for it


def encode(answer: RenderedAnswer) -> bytes:
    """The headers as JSON on a line of their own, then the body."""
    return zlib.compress(orjson.dumps(dict(answer.headers)) + b"\n" + answer.body, _LEVEL)


def decode(data: bytes) -> RenderedAnswer:
    headers, _, body = zlib.decompress(data).partition(b"\n")
    return RenderedAnswer(body=body, headers=orjson.loads(headers), replayed=True)
