"""`Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header-07), and what makes a request the same one."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence

import orjson

from serving.api.structured_fields import parsed_string
from serving.domain.idempotency import MAX_KEY_CHARACTERS, IdempotencyKey, fingerprint
from serving.domain.inference import InferenceRequest
from serving.errors import InvalidRequest

HASHED_AT_ONCE_BYTES = 256 * 1024
"""Above this, hashing takes long enough to leave the event loop to others."""

# The draft wants quotes. Most clients send a bare UUID, which can mean nothing else.
_BARE = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z:/]+")


def idempotency_key(field_values: Sequence[str]) -> str | None:
    """The key without its quotes, 1 to 255 characters; None where the client sent no such field.

    Raises InvalidRequest for anything that is neither one String nor the characters of a Token: a client
    that counts on being billed once has to learn that it is not understood.
    """
    if not field_values:
        return None
    if len(field_values) > 1:
        raise InvalidRequest("Idempotency-Key came more than once.")
    text = field_values[0]
    key = text if _BARE.fullmatch(text) else parsed_string(text)
    if not key or len(key) > MAX_KEY_CHARACTERS:
        raise InvalidRequest(
            f"Idempotency-Key is a string of 1 to {MAX_KEY_CHARACTERS} printable ASCII characters in quotes."
        )
    return key


async def named(key: str, request: InferenceRequest) -> IdempotencyKey:
    """The key, with the fingerprint of what was asked.

    It is taken of what was understood, not of the bytes that said it, which differ from one multipart
    boundary to the next.
    """
    if request.received_bytes > HASHED_AT_ONCE_BYTES:
        return IdempotencyKey(key, await asyncio.to_thread(fingerprint, _parts(request)))
    return IdempotencyKey(key, fingerprint(_parts(request)))


def _parts(request: InferenceRequest) -> Iterator[bytes]:
    yield orjson.dumps(
        {
            "model": request.model,
            "single": request.single,
            "confidence_threshold": request.confidence_threshold,
            "iou_threshold": request.iou_threshold,
            "max_detections": request.max_detections,
            "classes": request.classes,
        }
    )
    for picture in request.pictures:
        if isinstance(picture, bytes):
            yield b"picture"
            yield picture
        else:
            yield b"unusable"
            yield picture.detail.encode()
