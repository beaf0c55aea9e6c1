"""What bad input gets: the documented error, as problem details, and the next good request is served."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator
from typing import Any

import cv2
import numpy as np
import pytest

from serving.domain.api_key import ApiKey
from tests.support.picture_files import animated
from tests.support.problems import assert_problem
from tests.support.world import MAX_BODY_BYTES, MAX_REQUESTS, World, encode

JPEG = {"Content-Type": "image/jpeg"}
JSON = {"Content-Type": "application/json"}


@pytest.fixture(autouse=True)
async def _the_next_good_request_is_served(world: World, jpeg: bytes) -> AsyncIterator[None]:
    yield
    response = await world.client.post("/v1/infer/shapes", content=jpeg, headers={**world.bearer(), **JPEG})
    assert response.status_code == 200
    assert world.held_bytes.held == 0


@pytest.mark.parametrize(
    ("authorization", "code"),
    [
        (None, "unauthenticated"),
        ("", "unauthenticated"),
        ("Bearer", "unauthenticated"),
        ("Bearer ", "unauthenticated"),
        ("Basic dTpw", "unauthenticated"),
        ("Bearer nonsense", "unauthenticated"),
        ("Bearer " + "x" * 10_000, "unauthenticated"),
        ("Bearer pk_ümlaut".encode(), "unauthenticated"),
        (f"Bearer {ApiKey.generate().reveal()}", "unauthenticated"),
        (f"Bearer {ApiKey.generate().reveal()[:-1]}", "unauthenticated"),
    ],
)
async def test_keys_that_are_none(
    world: World, jpeg: bytes, authorization: str | bytes | None, code: str
) -> None:
    headers: dict[str, Any] = (
        dict(JPEG) if authorization is None else {**JPEG, "Authorization": authorization}
    )
    response = await world.client.post("/v1/infer", content=jpeg, headers=headers)

    assert_problem(response, 401, code)
    assert response.headers["WWW-Authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    ("terms", "status", "code"),
    [
        ({"revoked": True}, 401, "key_revoked"),
        ({"expired": True}, 401, "key_expired"),
        ({"models": ["other"]}, 403, "forbidden"),
    ],
)
async def test_keys_that_may_not(
    world: World, jpeg: bytes, terms: dict[str, Any], status: int, code: str
) -> None:
    headers = {**world.bearer(**terms), **JPEG}
    assert_problem(await world.client.post("/v1/infer/shapes", content=jpeg, headers=headers), status, code)


async def test_unknown_model_and_no_model(world: World, jpeg: bytes) -> None:
    headers = {**world.bearer(), **JPEG}
    unknown = await world.client.post("/v1/infer/nothing", content=jpeg, headers=headers)
    unnamed = await world.client.post("/v1/infer", content=jpeg, headers=headers)

    assert_problem(unknown, 404, "model_not_found")
    assert_problem(unnamed, 404, "model_not_found")


async def test_the_model_in_body_and_path_must_agree(world: World, jpeg: bytes) -> None:
    response = await world.client.post(
        "/v1/infer/shapes", params={"model": "other"}, content=jpeg, headers={**world.bearer(), **JPEG}
    )

    assert_problem(response, 422, "invalid_request")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"{}",
        b'{"image": null}',
        b'{"image": 1}',
        b'{"image": ["a"]}',
        b'{"images": []}',
        b'{"images": "a"}',
        b'{"image": "a", "images": ["a"]}',
        b'{"image": "aGk=", "surprise": 1}',
        b'{"image": "aGk=", "confidence_threshold": 1.5}',
        b'{"image": "aGk=", "confidence_threshold": -0.1}',
        b'{"image": "aGk=", "confidence_threshold": NaN}',
        b'{"image": "aGk=", "confidence_threshold": Infinity}',
        b'{"image": "aGk=", "confidence_threshold": "0.5"}',
        b'{"image": "aGk=", "confidence_threshold": true}',
        b'{"image": "aGk=", "iou_threshold": 2}',
        b'{"image": "aGk=", "max_detections": 0}',
        b'{"image": "aGk=", "max_detections": 1001}',
        b'{"image": "aGk=", "max_detections": 1.5}',
        b'{"image": "aGk=", "max_detections": true}',
        b'{"image": "aGk=", "classes": "cat"}',
        b'{"image": "aGk=", "classes": [{}]}',
        b'{"image": "aGk=", "classes": [-1]}',
        b'{"image": "aGk=", "classes": ["bird"]}',
        b'{"image": "aGk=", "classes": [2]}',
        b'{"image": "aGk=", "model": 7}',
        b'{"image": "\xff"}',
        b'{"images": ["aGk=", "aGk=", "aGk=", "aGk=", "aGk="]}',
    ],
)
async def test_json_that_is_not_a_request(world: World, body: bytes) -> None:
    response = await world.client.post("/v1/infer/shapes", content=body, headers={**world.bearer(), **JSON})

    assert_problem(response, 422, "invalid_request")


@pytest.mark.parametrize("image", ["", "not base64!", "aGk", "data:image/jpeg;base64", "data:,", "aGk="])
async def test_base64_that_is_no_picture(world: World, image: str) -> None:
    response = await world.client.post("/v1/infer/shapes", json={"image": image}, headers=world.bearer())

    assert_problem(response, 422, "image_undecodable")


async def test_a_long_body_is_never_quoted_back(world: World) -> None:
    body = {"image": "A" * 1000, "B" * 1000: "C" * 1000, "max_detections": "D" * 1000}
    response = await world.client.post("/v1/infer/shapes", json=body, headers=world.bearer())

    assert_problem(response, 422, "invalid_request")
    assert len(response.content) < 1000


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"confidence_threshold": "nan"}, "invalid_request"),
        ({"confidence_threshold": "high"}, "invalid_request"),
        ({"iou_threshold": "-1"}, "invalid_request"),
        ({"surprise": "1"}, "invalid_request"),
        ({"max_detections": ["1", "2"]}, "invalid_request"),
        ({"classes": ""}, "invalid_request"),
    ],
)
async def test_query_options_that_do_not_fit(
    world: World, jpeg: bytes, query: dict[str, Any], code: str
) -> None:
    response = await world.client.post(
        "/v1/infer/shapes", params=query, content=jpeg, headers={**world.bearer(), **JPEG}
    )

    assert_problem(response, 422, code)


def _truncated(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


def _png_of(width: int, height: int) -> bytes:
    """A complete PNG that claims a size and holds next to nothing."""
    small = bytearray(encode(np.zeros((1, 1, 3), np.uint8), ".png"))
    small[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return bytes(small)


NOISE = np.random.default_rng(7).integers(0, 255, (200, 200, 3), np.uint8)


@pytest.mark.parametrize(
    ("body", "media_type", "status", "code"),
    [
        (b"", "image/jpeg", 422, "image_undecodable"),
        (b"hello, I am text", "image/jpeg", 422, "image_undecodable"),
        (_truncated(encode(NOISE)), "image/jpeg", 422, "image_undecodable"),
        (_truncated(encode(NOISE, ".png")), "image/png", 422, "image_undecodable"),
        (_png_of(30_000, 30_000), "image/png", 422, "image_too_large"),
        (animated("GIF"), "image/png", 415, "unsupported_media_type"),
        (animated("GIF"), "image/gif", 415, "unsupported_media_type"),
        (b"hello", "text/plain", 415, "unsupported_media_type"),
        (b"hello", "", 415, "unsupported_media_type"),
        (b"a=b", "application/x-www-form-urlencoded", 415, "unsupported_media_type"),
    ],
    ids=["empty", "text", "cut_jpeg", "cut_png", "bomb", "gif_as_png", "gif", "plain", "untyped", "form"],
)
async def test_bodies_that_are_no_picture(
    world: World, body: bytes, media_type: str, status: int, code: str
) -> None:
    headers = {**world.bearer(), "Content-Type": media_type}
    response = await world.client.post("/v1/infer/shapes", content=body, headers=headers)

    assert_problem(response, status, code)
    assert not world.meter.recent()


@pytest.mark.parametrize(
    ("content", "media_type"),
    [
        (b"", "multipart/form-data"),
        (b"", "multipart/form-data; boundary=x"),
        (b"no boundary in here", "multipart/form-data; boundary=x"),
        (
            b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\nhi\r\n--x--\r\n',
            "multipart/form-data; boundary=x",
        ),
        (
            b'--x\r\nContent-Disposition: form-data; name="other"; filename="a"\r\n\r\nhi\r\n--x--\r\n',
            "multipart/form-data; boundary=x",
        ),
    ],
    ids=["no_boundary", "empty", "unparsable", "field_not_file", "other_name"],
)
async def test_multipart_that_is_not_a_request(world: World, content: bytes, media_type: str) -> None:
    headers = {**world.bearer(), "Content-Type": media_type}
    response = await world.client.post("/v1/infer/shapes", content=content, headers=headers)

    assert_problem(response, 422, "invalid_request")


async def test_a_declared_long_body_is_refused_before_it_is_read(world: World) -> None:
    async def never_read() -> AsyncIterator[bytes]:
        yield b""
        pytest.fail("the body was read on")

    headers = {**world.bearer(), **JPEG, "Content-Length": str(MAX_BODY_BYTES + 1)}
    response = await world.client.post("/v1/infer/shapes", content=never_read(), headers=headers)

    assert_problem(response, 413, "payload_too_large")


async def test_an_undeclared_long_body_is_refused_while_it_is_read(world: World) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 10_000
            yield b"\xff" * 10_000

    response = await world.client.post(
        "/v1/infer/shapes", content=endless(), headers={**world.bearer(), **JPEG}
    )

    assert_problem(response, 413, "payload_too_large")
    assert sent == MAX_BODY_BYTES + 10_000


async def test_a_server_that_is_gone_is_a_503_that_bills_nothing(world: World, jpeg: bytes) -> None:
    world.backend.unavailable.add("shapes")
    response = await world.client.post("/v1/infer/shapes", content=jpeg, headers={**world.bearer(), **JPEG})
    world.backend.unavailable.clear()

    assert_problem(response, 503, "backend_unavailable")
    assert int(response.headers["Retry-After"]) >= 1
    assert not world.meter.recent()


async def test_a_crowd_is_refused_but_probes_get_through(world: World, jpeg: bytes) -> None:
    gate = asyncio.Event()
    arrivals: asyncio.Queue[None] = asyncio.Queue()

    async def slow() -> AsyncIterator[bytes]:
        arrivals.put_nowait(None)
        await gate.wait()
        yield jpeg

    headers = {**world.bearer(), **JPEG}
    crowd = [
        asyncio.create_task(world.client.post("/v1/infer/shapes", content=slow(), headers=headers))
        for _ in range(MAX_REQUESTS)
    ]
    for _ in crowd:
        await arrivals.get()
    refused = await world.client.post("/v1/infer/shapes", content=jpeg, headers=headers)
    probe = await world.client.get("/healthz")
    gate.set()

    assert_problem(refused, 503, "overloaded")
    assert probe.status_code == 200
    assert [(await task).status_code for task in crowd] == [200] * MAX_REQUESTS


async def test_unknown_routes_and_methods(world: World) -> None:
    assert_problem(await world.client.get("/nothing/here"), 404, "not_found")
    assert_problem(await world.client.get("/v1/infer"), 405, "method_not_allowed")


def test_the_pictures_of_this_module_are_what_they_claim() -> None:
    assert cv2.imdecode(np.frombuffer(encode(NOISE), np.uint8), cv2.IMREAD_COLOR).shape == (200, 200, 3)
    assert len(b64encode(_png_of(30_000, 30_000))) < 1000
