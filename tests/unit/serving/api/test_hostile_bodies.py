"""Bodies made to cost more than they are: refused by their counts, before anybody looks into them."""

from __future__ import annotations

import tracemalloc

import httpx
import orjson
import pytest

from tests.support.world import MAX_BODY_BYTES, World

JSON = {"Content-Type": "application/json"}


async def post(world: World, body: bytes, headers: dict[str, str]) -> httpx.Response:
    return await world.client.post("/v1/infer/shapes", content=body, headers={**world.bearer(), **headers})


@pytest.mark.parametrize(
    "body",
    [
        b'{"images": [' + b"1," * (MAX_BODY_BYTES // 2 - 20) + b"1]}",
        b'{"images": [' + b'"",' * (MAX_BODY_BYTES // 3 - 20) + b'""]}',
        orjson.dumps({f"f{number}": 1 for number in range(MAX_BODY_BYTES // 12)}),
        b'{"image": "aGk=", "classes": [' + b"-1," * (MAX_BODY_BYTES // 3 - 20) + b"1]}",
    ],
    ids=["numbers", "empty_strings", "fields", "classes"],
)
async def test_many_small_entries_cost_no_more_than_the_body(world: World, body: bytes) -> None:
    assert len(body) < MAX_BODY_BYTES
    tracemalloc.start()
    try:
        response = await post(world, body, JSON)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")
    assert len(response.content) < 2000
    assert peak_bytes < 20 * MAX_BODY_BYTES


@pytest.mark.parametrize("charset", ["undefined", "punycode", '"utf-8\\\x00"', "rot13", "idna"])
async def test_a_form_does_not_choose_our_codecs(world: World, jpeg: bytes, charset: str) -> None:
    body = (
        b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + jpeg + b"\r\n--x--\r\n"
    )
    response = await post(
        world, body, {"Content-Type": f"multipart/form-data; charset={charset}; boundary=x"}
    )

    assert response.status_code == 200


async def test_parts_beyond_the_limit_are_refused(world: World, jpeg: bytes) -> None:
    files = [("image", (f"{number}.jpg", jpeg, "image/jpeg")) for number in range(5)]
    response = await world.client.post("/v1/infer/shapes", files=files, headers=world.bearer())

    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")


async def test_the_query_beside_a_body_may_name_the_model_and_nothing_else(world: World, jpeg: bytes) -> None:
    files = {"image": ("a.jpg", jpeg, "image/jpeg")}
    named = await world.client.post(
        "/v1/infer", params={"model": "other"}, files=files, headers=world.bearer()
    )
    option = await world.client.post(
        "/v1/infer/other", params={"max_detections": "1"}, files=files, headers=world.bearer()
    )

    assert named.json()["model"] == "other"
    assert option.json()["code"] == "invalid_request"


async def test_no_redirect_to_wherever_the_host_header_says(world: World) -> None:
    response = await world.client.post("/v1/infer/", headers={"Host": "elsewhere.example"})

    assert response.status_code == 404
    assert "Location" not in response.headers


async def test_get_implies_head_and_405_names_what_is_allowed(world: World) -> None:
    assert (await world.client.head("/healthz")).status_code == 200
    refused = await world.client.get("/v1/infer")
    assert (refused.status_code, refused.headers["Allow"]) == (405, "POST")
