"""`POST /v1/infer`: three body forms, one result; the answer is what spec §2 shows."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from typing import Any

import orjson
import pytest

from tests.support.world import World

JPEG = {"Content-Type": "image/jpeg"}


def text(data: bytes) -> str:
    return b64encode(data).decode()


async def post_form(world: World, form: str, picture: bytes, **options: Any) -> Any:
    headers = world.bearer()
    if form == "json":
        body = {"image": text(picture), "model": "shapes", **options}
        return await world.client.post("/v1/infer", json=body, headers=headers)
    if form == "data_url":
        body = {"image": f"data:image/jpeg;base64,{text(picture)}", "model": "shapes", **options}
        return await world.client.post("/v1/infer", json=body, headers=headers)
    if form == "multipart":
        files = {"image": ("a.jpg", picture, "image/jpeg")}
        data = {"model": "shapes", **options}
        return await world.client.post("/v1/infer", files=files, data=data, headers=headers)
    return await world.client.post(
        "/v1/infer", content=picture, params={"model": "shapes", **options}, headers={**headers, **JPEG}
    )


FORMS = ["json", "data_url", "multipart", "raw"]


@pytest.mark.parametrize("form", FORMS)
async def test_every_body_form_gives_the_documented_answer(world: World, jpeg: bytes, form: str) -> None:
    response = await post_form(world, form, jpeg)

    answer = response.json()
    assert response.status_code == 200
    assert set(answer) == {
        *("predictions", "latency_ms", "model", "model_version", "request_id", "image", "timings_ms"),
    }
    cat, dog = answer["predictions"]
    assert cat == {"class": "cat", "class_id": 0, "confidence": 1.0, "bbox": [24.0, 8.0, 56.0, 24.0]}
    assert dog["class"] == "dog"
    assert answer["image"] == {"width": 128, "height": 64}
    assert answer["model"] == "shapes"
    assert answer["model_version"] == "1"
    assert set(answer["timings_ms"]) == {"decode", "preprocess", "queue", "inference", "postprocess"}
    assert response.headers["X-Request-ID"] == answer["request_id"]
    assert len(response.headers["X-Model-Contract"]) == 64
    stages = [part.split(";")[0] for part in response.headers["Server-Timing"].split(", ")]
    assert stages == ["auth", "body", "decode", "preprocess", "queue", "inference", "postprocess", "total"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("options", "classes"),
    [
        ({"confidence_threshold": 0.6}, ["cat"]),
        ({"max_detections": 1}, ["cat"]),
        ({"classes": ["dog"]}, ["dog"]),
        ({"classes": [1, "cat"]}, ["cat", "dog"]),
    ],
)
async def test_options_mean_the_same_in_every_form(
    world: World, jpeg: bytes, form: str, options: dict[str, Any], classes: list[str]
) -> None:
    response = await post_form(world, form, jpeg, **options)

    assert [found["class"] for found in response.json()["predictions"]] == classes


async def test_classes_may_be_a_comma_separated_list(world: World, jpeg: bytes) -> None:
    response = await post_form(world, "raw", jpeg, classes="dog, cat")

    assert len(response.json()["predictions"]) == 2


async def test_a_list_answers_in_order_and_one_bad_picture_does_not_fail_the_rest(
    world: World, jpeg: bytes, dark_png: bytes
) -> None:
    body = {"images": [text(jpeg), text(b"no picture"), "not base64!", text(dark_png)], "model": "shapes"}
    response = await world.client.post("/v1/infer", json=body, headers=world.bearer())

    bright, text_file, bad_base64, dark = response.json()["results"]
    assert [found["class"] for found in bright["predictions"]] == ["cat", "dog"]
    assert text_file["error"]["code"] == bad_base64["error"]["code"] == "image_undecodable"
    assert [found["class"] for found in dark["predictions"]] == ["dog"]
    assert [event.pictures for event in world.meter.recent()] == [2]


async def test_a_list_of_one_is_answered_with_a_list(world: World, jpeg: bytes) -> None:
    body = {"images": [text(jpeg)], "model": "shapes"}
    response = await world.client.post("/v1/infer", json=body, headers=world.bearer())

    assert len(response.json()["results"]) == 1


async def test_several_file_parts_are_answered_with_a_list(
    world: World, jpeg: bytes, dark_png: bytes
) -> None:
    files = [("image", ("a.jpg", jpeg, "image/jpeg")), ("image", ("b.png", dark_png, "image/png"))]
    response = await world.client.post(
        "/v1/infer", files=files, data={"model": "shapes"}, headers=world.bearer()
    )

    assert [len(result["predictions"]) for result in response.json()["results"]] == [2, 1]


async def test_the_path_names_the_endpoint(world: World, jpeg: bytes) -> None:
    response = await world.client.post("/v1/infer/other", content=jpeg, headers={**world.bearer(), **JPEG})

    assert response.json()["model"] == "other"


async def test_a_key_with_one_endpoint_need_not_name_it(world: World, jpeg: bytes) -> None:
    headers = {**world.bearer(models=["other"]), **JPEG}
    response = await world.client.post("/v1/infer", content=jpeg, headers=headers)

    assert response.json()["model"] == "other"


async def test_every_200_is_settled_once_under_its_request_id(world: World, jpeg: bytes) -> None:
    responses = [await post_form(world, "raw", jpeg) for _ in range(3)]

    settled = [event.request_id for event in world.meter.recent()]
    assert settled == [response.json()["request_id"] for response in responses]


async def test_requests_that_arrive_together_share_batches(world: World, jpeg: bytes) -> None:
    headers = {**world.bearer(models=["shapes"]), **JPEG}
    posts = [world.client.post("/v1/infer", content=jpeg, headers=headers) for _ in range(8)]
    responses = await asyncio.gather(*posts)

    assert [response.status_code for response in responses] == [200] * 8
    batches = world.metrics.registry.get_sample_value("visiongate_batch_pictures_count")
    pictures = world.metrics.registry.get_sample_value("visiongate_batch_pictures_sum")
    assert pictures == 8
    assert batches is not None
    assert batches < 8


async def test_metrics_are_labelled_by_route_template_and_code(world: World, jpeg: bytes) -> None:
    headers = {**world.bearer(), **JPEG}
    await world.client.post("/v1/infer/shapes", content=jpeg, headers=headers)
    await world.client.post("/v1/infer/no-such-model", content=jpeg, headers=headers)
    await world.client.get("/wp-admin.php")

    def requests(**labels: str) -> float | None:
        return world.metrics.registry.get_sample_value("visiongate_http_requests_total", labels)

    route = "/v1/infer/{deployment_id}"
    assert requests(method="POST", route=route, status="200", code="ok") == 1
    assert requests(method="POST", route=route, status="404", code="model_not_found") == 1
    assert requests(method="GET", route="unmatched", status="404", code="not_found") == 1


@pytest.mark.parametrize(
    "media_type", ["IMAGE/JPEG", "image/jpeg; charset=binary", "Image/Jpeg ;q=1", "image/png"]
)
async def test_a_content_type_is_understood_in_any_spelling(
    world: World, jpeg: bytes, media_type: str
) -> None:
    """And the picture is what its bytes say, not what its label says."""
    response = await world.client.post(
        "/v1/infer/shapes", content=jpeg, headers={**world.bearer(), "Content-Type": media_type}
    )

    assert response.status_code == 200


@pytest.mark.parametrize(
    "media_type", ["Application/JSON", "application/json; charset=utf-8", "APPLICATION/JSON ;charset=UTF-8"]
)
async def test_so_is_that_of_json(world: World, jpeg: bytes, media_type: str) -> None:
    response = await world.client.post(
        "/v1/infer/shapes",
        content=orjson.dumps({"image": text(jpeg)}),
        headers={**world.bearer(), "Content-Type": media_type},
    )

    assert response.status_code == 200


@pytest.mark.parametrize("form", FORMS)
async def test_the_bytes_of_an_event_are_those_of_the_body_as_it_came(
    world: World, jpeg: bytes, form: str
) -> None:
    response = await post_form(world, form, jpeg)

    (event,) = world.meter.recent()
    assert event.received_bytes == int(response.request.headers["Content-Length"]) >= len(jpeg)
