"""The three body forms of an inference request, read into one `InferenceRequest`."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import AsyncGenerator, Iterable
from dataclasses import replace
from typing import Any

import orjson
from pydantic import ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from serving.api.idempotency_field import idempotency_key, named
from serving.api.schemas import MAX_CLASSES, PICTURE_MEDIA_TYPES, InferenceBody, InferenceOptions
from serving.api.trace_context import trace_id
from serving.api.validation import invalid
from serving.domain.inference import InferenceRequest, SentPicture
from serving.domain.tenant import Principal
from serving.errors import InvalidRequest, PictureUndecodable, UnsupportedMediaType
from serving.threads import PriorityThreads

MAX_FIELDS = 64
MAX_PICTURES_ASKED_AGAIN = 1000
"""That are read of a request with an `Idempotency-Key`, even where the caller's tier allows fewer: it may be
one that was answered when the tier allowed more."""
MAX_FIELD_BYTES = 4096
LARGE_BODY_BYTES = 256 * 1024
"""Above this, parsing takes long enough to leave the event loop to others."""

Form = tuple[InferenceOptions, tuple[SentPicture, ...], bool]
"""Options, pictures, and whether it was one picture that was asked about."""


async def read_inference_request(
    request: Request,
    body: bytes,
    *,
    request_id: str,
    deployment_id: str | None,
    deadline: float,
    principal: Principal,
    threads: PriorityThreads,
) -> InferenceRequest:
    """threads: for what takes long, in the order of the callers' priorities.

    Raises InvalidRequest, UnsupportedMediaType. What is too long is refused before it is looked into.
    """
    key = idempotency_key(request.headers.getlist("idempotency-key"))
    max_pictures = principal.tier.max_pictures_per_request
    if key is not None:
        max_pictures = max(max_pictures, MAX_PICTURES_ASKED_AGAIN)
    options, pictures, single = await _read_form(request, body, max_pictures, principal, threads)
    asked = InferenceRequest(
        request_id=request_id,
        model=_one_model(deployment_id, request.query_params.get("model"), options.model),
        pictures=pictures,
        received_bytes=len(body),
        single=single,
        deadline=deadline,
        trace_id=trace_id(request.headers.getlist("traceparent")) or request_id,
        confidence_threshold=options.confidence_threshold,
        iou_threshold=options.iou_threshold,
        max_detections=options.max_detections,
        classes=options.classes,
    )
    if key is None:
        return asked
    return replace(asked, idempotency=await named(key, asked, principal=principal, threads=threads))


async def _read_form(
    request: Request, body: bytes, max_pictures: int, principal: Principal, threads: PriorityThreads
) -> Form:
    content_type = request.headers.get("content-type", "")
    media_type = content_type.partition(";")[0].strip().lower()
    query = request.query_params.multi_items()
    if media_type in PICTURE_MEDIA_TYPES:
        return _options(_text_fields(query)), (body,), True
    if media_type not in {"application/json", "multipart/form-data"}:
        raise UnsupportedMediaType(media_type[:100] or "a body without Content-Type")
    if any(name != "model" for name, _ in query):
        raise InvalidRequest("Options stand in the body; only 'model' may stand in the query beside one.")
    if media_type == "multipart/form-data":
        return await _multipart_form(content_type, body, max_pictures)
    if len(body) > LARGE_BODY_BYTES:
        return await threads.run(principal.tier.priority, _json_form, body, max_pictures)
    return _json_form(body, max_pictures)


def _one_model(*names: str | None) -> str | None:
    given = {name for name in names if name is not None}
    if len(given) > 1:
        raise InvalidRequest("The request names different models in its path, query and body.")
    return given.pop() if given else None


def _json_form(body: bytes, max_pictures: int) -> Form:
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        raise InvalidRequest(f"The body is not JSON: {exc.msg} at character {exc.pos}.") from exc
    if not isinstance(fields, dict):
        raise InvalidRequest("The body is not a JSON object.")
    # Before pydantic sees them: it reports on every single entry.
    _require_at_most(MAX_FIELDS, fields, "fields")
    for name, limit in (("images", max_pictures), ("classes", MAX_CLASSES)):
        if isinstance(fields.get(name), list):
            _require_at_most(limit, fields[name], name)
    try:
        parsed = InferenceBody.model_validate(fields)
    except ValidationError as exc:
        raise invalid(exc) from exc
    if parsed.image is not None:
        return parsed, (_base64(parsed.image),), True
    return parsed, tuple(_base64(text) for text in parsed.images or ()), False


def _require_at_most(limit: int, entries: dict[str, Any] | list[Any], what: str) -> None:
    if len(entries) > limit:
        raise InvalidRequest(f"{len(entries)} {what} in one request are more than the {limit} allowed.")


class _InMemoryParser(MultiPartParser):
    spool_max_size = 2**31  # the body is in memory already: no part of it goes to a disk


async def _multipart_form(content_type: str, body: bytes, max_pictures: int) -> Form:
    # Rebuilt, because a charset among its parameters would choose any of Python's codecs.
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    headers = Headers(raw=[(b"content-type", b"multipart/form-data; boundary=" + boundary)])

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    parser = _InMemoryParser(
        headers, stream(), max_files=max_pictures, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES
    )
    try:
        form = await parser.parse()
    except (MultiPartException, ValueError) as exc:
        raise InvalidRequest(f"The multipart body cannot be read: {str(exc)[:200]}") from exc
    try:
        fields = [(name, part) for name, part in form.multi_items() if isinstance(part, str)]
        files = [(name, part) for name, part in form.multi_items() if isinstance(part, UploadFile)]
        if any(name != "image" for name, _ in files):
            raise InvalidRequest("A file part has a name other than 'image'.")
        pictures = tuple([await file.read() for _, file in files])
    finally:
        await form.close()
    if not pictures:
        raise InvalidRequest("image: send at least one file part named 'image', with a filename.")
    return _options(_text_fields(fields)), pictures, len(pictures) == 1


def _text_fields(items: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """`classes` may be repeated and may hold a comma-separated list; everything else comes once."""
    fields: dict[str, Any] = {}
    for name, text in items:
        if name == "classes":
            fields.setdefault(name, []).extend(part.strip() for part in text.split(","))
        elif name in fields:
            raise InvalidRequest("An option is given more than once.")
        else:
            fields[name] = text
    return fields


def _options(fields: dict[str, Any]) -> InferenceOptions:
    try:
        return InferenceOptions.model_validate(fields)
    except ValidationError as exc:
        raise invalid(exc) from exc


def _base64(text: str) -> SentPicture:
    if text.startswith("data:"):
        _, comma, text = text.partition(",")
        if not comma:
            return PictureUndecodable("The data URL holds no data.")
    try:
        return b64decode(text, validate=True)
    except ValueError:
        return PictureUndecodable("The picture is not valid base64.")
