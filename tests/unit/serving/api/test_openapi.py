"""The published schema: every route, what it is asked with, and everything that it may answer."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_asyncio
from jsonschema import Draft202012Validator, FormatChecker

from serving.api.idempotency_field import idempotency_key
from tests.support.tiers import make_tier
from tests.support.world import running_world

# Spec, section 2, and those of the Idempotency-Key.
CODES = [
    (401, "unauthenticated"),
    (401, "key_expired"),
    (401, "key_revoked"),
    (403, "forbidden"),
    (404, "model_not_found"),
    (409, "idempotency_key_in_use"),
    (409, "answer_not_kept"),
    (413, "payload_too_large"),
    (415, "unsupported_media_type"),
    (422, "invalid_request"),
    (422, "image_undecodable"),
    (422, "image_too_large"),
    (422, "idempotency_key_reused"),
    (429, "rate_limited"),
    (429, "quota_exceeded"),
    (503, "overloaded"),
    (503, "backend_unavailable"),
    (504, "timeout"),
    (500, "internal"),
]
INFERENCE = ["/v1/infer", "/v1/infer/{deployment_id}"]
BY_API_KEY = {
    ("post", "/v1/infer"),
    ("post", "/v1/infer/{deployment_id}"),
    ("get", "/v1/models"),
    ("get", "/v1/models/{name}"),
    ("get", "/v1/usage"),
    ("get", "/v1/deployments/{deployment_id}/usage"),
}
BY_OPERATOR = {
    ("post", "/api/v1/keys"),
    ("post", "/api/v1/users/{user}/disable"),
    ("post", "/api/v1/users/{user}/enable"),
}
BY_OWNER = {
    ("get", "/api/v1/keys"),
    ("get", "/api/v1/keys/{key_id}"),
    ("delete", "/api/v1/keys/{key_id}"),
    ("post", "/api/v1/keys/{key_id}/rotate"),
    ("get", "/api/v1/usage"),
    ("get", "/api/v1/usage/invoice"),
}
BY_ANYBODY = {("get", "/healthz"), ("get", "/readyz")}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def schema() -> dict[str, Any]:
    """Not to be changed: it takes its time to be made."""
    async with running_world(make_tier()) as world:
        published: dict[str, Any] = (await world.client.get("/openapi.json")).json()
    return published


def operations(schema: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (method, path): operation
        for path, item in schema["paths"].items()
        for method, operation in item.items()
    }


def test_every_route_says_who_may_call_it(schema: dict[str, Any]) -> None:
    callers = {
        route: tuple(scheme for either in operation.get("security", []) for scheme in either)
        for route, operation in operations(schema).items()
    }

    assert callers == (
        dict.fromkeys(BY_API_KEY, ("apiKey",))
        | dict.fromkeys(BY_OPERATOR, ("adminToken",))
        | dict.fromkeys(BY_OWNER, ("adminToken", "userToken"))
        | dict.fromkeys(BY_ANYBODY, ())
    )
    assert set(schema["components"]["securitySchemes"]) == {"apiKey", "adminToken", "userToken"}


def test_every_reference_leads_somewhere(schema: dict[str, Any]) -> None:
    def references(node: Any) -> set[str]:
        if isinstance(node, list):
            return set().union(*map(references, node))
        if not isinstance(node, dict):
            return set()
        here = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
        return here.union(*map(references, node.values()))

    known = {f"#/components/schemas/{name}" for name in schema["components"]["schemas"]}
    assert references(schema["paths"]) <= known
    assert references(schema["components"]) <= known


def test_every_refusal_is_problem_details_and_every_answer_is_described(schema: dict[str, Any]) -> None:
    for route, operation in operations(schema).items():
        for status, response in operation["responses"].items():
            problem = {"schema": {"$ref": "#/components/schemas/Problem"}}
            if int(status) >= 400 and (*route, status) != ("get", "/readyz", "503"):
                assert response["content"] == {"application/problem+json": problem}, route
            else:
                assert response["content"]["application/json"]["schema"], route
            if route not in BY_ANYBODY:
                assert "X-Request-ID" in response["headers"], (route, status)


def test_answers_to_an_api_key_say_what_is_left(schema: dict[str, Any]) -> None:
    for route, operation in operations(schema).items():
        for status, response in operation["responses"].items():
            told = {"RateLimit", "RateLimit-Policy"} <= set(response.get("headers", {}))
            assert told == (route in BY_API_KEY and status not in ("401", "405")), (route, status)


@pytest.mark.parametrize("path", INFERENCE)
@pytest.mark.parametrize(("status", "code"), CODES)
def test_every_code_is_documented_under_its_status(
    schema: dict[str, Any], path: str, status: int, code: str
) -> None:
    documented = schema["paths"][path]["post"]["responses"][str(status)]["description"]
    assert code in documented.split(", ")


@pytest.mark.parametrize("path", INFERENCE)
def test_an_inference_documents_its_header_fields(schema: dict[str, Any], path: str) -> None:
    operation = schema["paths"][path]["post"]

    asked = {field["name"]: field for field in operation["parameters"] if field["in"] == "header"}
    assert set(asked) == {"Idempotency-Key", "traceparent"}
    assert "24 hours" in asked["Idempotency-Key"]["description"]
    answered = operation["responses"]["200"]
    assert {"X-Model-Contract", "Idempotency-Replayed"} <= set(answered["headers"])
    assert answered["content"]["application/json"]["schema"]["anyOf"]
    for status in ("409", "429", "503"):
        assert "Retry-After" in operation["responses"][status]["headers"]


@pytest.mark.parametrize(
    ("path", "parameters"),
    [
        ("/v1/usage", {"from", "to", "group_by"}),
        ("/v1/deployments/{deployment_id}/usage", {"deployment_id", "from", "to", "group_by"}),
        ("/api/v1/usage", {"from", "to", "group_by", "user", "key_id"}),
        ("/api/v1/usage/invoice", {"month", "user", "format"}),
        ("/api/v1/keys", {"user"}),
    ],
)
def test_what_may_be_asked_is_listed(schema: dict[str, Any], path: str, parameters: set[str]) -> None:
    assert {field["name"] for field in schema["paths"][path]["get"]["parameters"]} == parameters


def test_an_invoice_comes_in_two_forms(schema: dict[str, Any]) -> None:
    content = schema["paths"]["/api/v1/usage/invoice"]["get"]["responses"]["200"]["content"]
    assert set(content) == {"application/json", "text/csv"}


@pytest.mark.parametrize(
    ("path", "field"), [("/api/v1/keys", "tier"), ("/api/v1/keys/{key_id}/rotate", "overlap_seconds")]
)
def test_a_body_that_is_wanted_is_described(schema: dict[str, Any], path: str, field: str) -> None:
    body = schema["paths"][path]["post"]["requestBody"]

    assert body["required"]
    assert field in body["content"]["application/json"]["schema"]["properties"]


@pytest.mark.parametrize(
    ("value", "is_valid"),
    [
        ("2026-11-21", True),
        ("2026-11-21T13:00:00Z", True),
        ("2026-11-21T13:00:00.000Z", True),
        ("2026-11-21T01:30:00+05:30", True),
        ("2026-11-21T13:00:01Z", False),
        ("2026-11-21T13:00:00.5Z", False),
        ("2026-11", False),
        ("yesterday", False),
    ],
)
def test_a_period_is_said_in_days_or_whole_hours(schema: dict[str, Any], value: str, is_valid: bool) -> None:
    parameters = schema["paths"]["/v1/usage"]["get"]["parameters"]
    for name in ("from", "to"):
        (field,) = (each["schema"] for each in parameters if each["name"] == name)
        # The formats of this validator are those that need no other package.
        assert Draft202012Validator(field, format_checker=FormatChecker(["date"])).is_valid(value) == is_valid
        assert {each.get("format") for each in field["anyOf"]} >= {"date", "date-time"}


def test_a_new_key_is_where_it_says_and_never_stored(schema: dict[str, Any]) -> None:
    issued = schema["paths"]["/api/v1/keys"]["post"]["responses"]["201"]["headers"]
    rotated = schema["paths"]["/api/v1/keys/{key_id}/rotate"]["post"]["responses"]["200"]["headers"]

    assert {"Location", "Cache-Control"} <= set(issued)
    assert "Cache-Control" in rotated


def test_every_route_documents_405(schema: dict[str, Any]) -> None:
    for operation in operations(schema).values():
        assert "Allow" in operation["responses"]["405"]["headers"]


def test_violated_policies_are_there_or_not_but_never_null(schema: dict[str, Any]) -> None:
    problem = schema["components"]["schemas"]["Problem"]
    assert problem["properties"]["violated-policies"]["type"] == "array"
    assert "violated-policies" not in problem["required"]


@pytest.mark.parametrize("key", ["x" * 255, '"' + "x" * 255 + '"', '"' + r"\\" * 255 + '"'])
def test_the_longest_idempotency_keys_are_valid(schema: dict[str, Any], key: str) -> None:
    parameters = schema["paths"]["/v1/infer"]["post"]["parameters"]
    (field,) = (each["schema"] for each in parameters if each["name"] == "Idempotency-Key")

    assert idempotency_key([key])
    Draft202012Validator(field).validate(key)
