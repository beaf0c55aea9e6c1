"""The three body forms of an inference request, read into one `InferenceRequest`."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from serving.api.body import replayed
from serving.api.schemas import PICTURE_MEDIA_TYPES, InferenceBody, InferenceOptions
from serving.domain.inference import InferenceRequest, SentPicture
from serving.errors import InvalidRequest, PictureUndecodable, UnsupportedMediaType

MAX_FORM_PARTS = 1024
MAX_FORM_FIELD_BYTES = 4096


async def read_inference_request(
    request: Request, body: bytes, *, request_id: str, deployment_id: str | None, deadline: float
) -> InferenceRequest:
    """Raises InvalidRequest, UnsupportedMediaType."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "application/json":
        options, pictures, single = _json_form(body)
    elif media_type == "multipart/form-data":
        options, pictures, single = await _multipart_form(replayed(request, body))
    elif media_type in PICTURE_MEDIA_TYPES:
        options, pictures, single = _options(_text_fields(request.query_params.multi_items())), (body,), True
    else:
        raise UnsupportedMediaType(media_type[:100] or "a body without Content-Type")
    if deployment_id is not None and options.model not in (None, deployment_id):
        raise InvalidRequest("The model in the request differs from the one in the path.")
    return InferenceRequest(
        request_id=request_id,
        model=deployment_id if deployment_id is not None else options.model,
        pictures=pictures,
        single=single,
        deadline=deadline,
        confidence_threshold=options.confidence_threshold,
        iou_threshold=options.iou_threshold,
        max_detections=options.max_detections,
        classes=options.classes,
    )


def _json_form(body: bytes) -> tuple[InferenceOptions, tuple[SentPicture, ...], bool]:
    try:
        parsed = InferenceBody.model_validate_json(body)
    except ValidationError as exc:
        raise _invalid(exc) from exc
    if parsed.image is not None:
        return parsed, (_base64(parsed.image),), True
    return parsed, tuple(_base64(text) for text in parsed.images or ()), False


async def _multipart_form(request: Request) -> tuple[InferenceOptions, tuple[SentPicture, ...], bool]:
    try:
        form = await request.form(
            max_files=MAX_FORM_PARTS, max_fields=MAX_FORM_PARTS, max_part_size=MAX_FORM_FIELD_BYTES
        )
    except MultiPartException as exc:
        raise InvalidRequest("The multipart body cannot be parsed.") from exc
    try:
        files = [(name, part) for name, part in form.multi_items() if isinstance(part, UploadFile)]
        fields = [(name, part) for name, part in form.multi_items() if isinstance(part, str)]
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
        raise _invalid(exc) from exc


def _base64(text: str) -> SentPicture:
    if text.startswith("data:"):
        _, comma, text = text.partition(",")
        if not comma:
            return PictureUndecodable("The data URL holds no data.")
    try:
        return b64decode(text, validate=True)
    except ValueError:
        return PictureUndecodable("The picture is not valid base64.")


def _invalid(exc: ValidationError) -> InvalidRequest:
    """Every finding, by field; the offending input itself is left out, it may be a picture."""
    findings = exc.errors(include_url=False, include_input=False, include_context=False)
    return InvalidRequest(
        "; ".join(
            ": ".join(filter(None, [".".join(str(part)[:50] for part in finding["loc"]), finding["msg"]]))
            for finding in findings[:10]
        )
    )
