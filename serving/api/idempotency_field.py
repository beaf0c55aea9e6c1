"""`Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header-07), and what makes a request the same one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import orjson

from serving.api.structured_fields import parsed_string
from serving.domain.idempotency import MAX_KEY_CHARACTERS, IdempotencyKey, fingerprint
from serving.domain.inference import InferenceRequest
from serving.domain.tenant import Principal
from serving.errors import InvalidRequest
from serving.threads import PriorityThreads

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


async def named(
    key: str, request: InferenceRequest, *, principal: Principal, threads: PriorityThreads
) -> IdempotencyKey:
    """The key, with the fingerprint of what was asked.

    It is taken of what was understood, not of the bytes that said it, which differ from one multipart
    boundary to the next. Where the model is left out, and the caller may use several, that is all that is
    known of it: which one is meant hangs on what is served at the moment.
    """
    model = request.model if request.model is not None else principal.only_model
    parts = _parts(request, model)
    picture_bytes = sum(len(picture) for picture in request.pictures if isinstance(picture, bytes))
    if picture_bytes > HASHED_AT_ONCE_BYTES:
        return IdempotencyKey(key, await threads.run(principal.tier.priority, fingerprint, parts))
    return IdempotencyKey(key, fingerprint(parts))


def _parts(request: InferenceRequest, model: str | None) -> Iterator[bytes]:
    yield orjson.dumps(
        {
            "model": model,
            "single": request.single,
            "confidence_threshold": request.confidence_threshold,
            "iou_threshold": request.iou_threshold,
            "max_detections": request.max_detections,
            "classes": _as_a_set(request.classes),
        }
    )
    for picture in request.pictures:
        if isinstance(picture, bytes):
            yield b"picture"
            yield picture
        else:
            yield b"unusable"
            yield picture.detail.encode()


def _as_a_set(classes: Sequence[str | int] | None) -> list[str] | None:
    """Their order does not count, nor whether an id came as a number: a query knows text only."""
    return None if classes is None else sorted({str(each) for each in classes})
