"""A query as a model: read on the way in, listed in the published schema."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import QueryParams

from serving.api.validation import invalid
from serving.errors import InvalidRequest

Parameters = TypeVar("Parameters", bound=BaseModel)


def parsed(model: type[Parameters], query: QueryParams) -> Parameters:
    """Raises InvalidRequest for what the model does not take, and for what is given twice."""
    items = query.multi_items()
    if len(items) > len(query):
        raise InvalidRequest("A parameter is given more than once.")
    try:
        return model.model_validate(dict(items))
    except ValidationError as exc:
        raise invalid(exc) from exc


def documented(model: type[BaseModel]) -> list[dict[str, Any]]:
    """As OpenAPI lists them."""
    schema = model.model_json_schema()
    required = schema.get("required", [])
    return [
        {"name": name, "in": "query", "required": name in required, "schema": field}
        for name, field in schema["properties"].items()
    ]
