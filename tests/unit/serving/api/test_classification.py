"""A classifier through the API: the same routes and forms, answers without boxes."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import orjson
import pytest
from numpy.typing import NDArray

from serving.api.answers import model_description, model_details
from serving.domain.contract import ModelContract
from serving.domain.tenant import Tier
from tests.support.contracts import CLASSIFIER, END_TO_END, changed, classifier_contract
from tests.support.world import SHAPES_AND_OTHER, World, encode, running_world

COLORS = classifier_contract("colors", side=32, classes=["red", "green", "blue"])
JPEG = {"Content-Type": "image/jpeg"}


def share_of_each_color(batch_nhwc: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(batch, 3): how much of the picture's light is red, green, blue; a black picture is a bit of each."""
    light = batch_nhwc.astype(np.float32).sum(axis=(1, 2)) + 1
    return np.asarray(light / light.sum(axis=1, keepdims=True), np.float32)


@pytest.fixture
async def world(tier: Tier) -> AsyncIterator[World]:
    async with running_world(tier, contracts=[COLORS], model=share_of_each_color) as world:
        yield world


def picture(red: int, green: int, blue: int) -> bytes:
    """128 x 64 pixels, of which a crop sees the middle: what it cannot see is white."""
    pixels_bgr = np.full((64, 128, 3), 255, np.uint8)
    pixels_bgr[:, 31:97] = (blue, green, red)
    return encode(pixels_bgr, ".png")


async def post(world: World, data: bytes, **options: Any) -> Any:
    headers = {**world.bearer(), "Content-Type": "image/png"}
    return await world.client.post("/v1/infer/colors", content=data, params=options, headers=headers)


async def test_classes_are_answered_most_confident_first_and_without_boxes(world: World) -> None:
    response = await post(world, picture(120, 0, 40))

    answer = response.json()
    assert response.status_code == 200
    assert answer["predictions"] == [
        {"class": "red", "class_id": 0, "confidence": pytest.approx(0.75, abs=1e-4)},
        {"class": "blue", "class_id": 2, "confidence": pytest.approx(0.25, abs=1e-4)},
        {"class": "green", "class_id": 1, "confidence": pytest.approx(0.0, abs=1e-4)},
    ]
    assert answer["image"] == {"width": 128, "height": 64}
    assert response.headers["X-Model-Contract"] == COLORS.sha256


@pytest.mark.parametrize(
    ("options", "classes"),
    [
        ({"max_detections": 1}, ["red"]),
        ({"confidence_threshold": 0.1}, ["red", "blue"]),
        ({"confidence_threshold": 0.8}, []),
        ({"classes": "green,blue", "max_detections": 1}, ["blue"]),
        ({"classes": "1"}, ["green"]),
    ],
)
async def test_options_mean_what_they_mean_for_detectors(
    world: World, options: dict[str, Any], classes: list[str]
) -> None:
    response = await post(world, picture(120, 0, 40), **options)

    assert [each["class"] for each in response.json()["predictions"]] == classes


async def test_a_list_answers_in_order(world: World) -> None:
    pictures = [picture(200, 0, 0), b"no picture", picture(0, 0, 200)]
    body = {"images": [b64encode(each).decode() for each in pictures], "max_detections": 1}

    response = await world.client.post("/v1/infer/colors", json=body, headers=world.bearer())

    red, broken, blue = response.json()["results"]
    assert [each["predictions"][0]["class"] for each in (red, blue)] == ["red", "blue"]
    assert broken["error"]["code"] == "image_undecodable"


async def test_equal_confidences_come_in_the_classes_own_order(world: World) -> None:
    response = await post(world, picture(0, 0, 0))

    assert [each["class"] for each in response.json()["predictions"]] == ["red", "green", "blue"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"iou_threshold": 0.45}, "iou_threshold: the model 'colors' answers classes"),
        ({"classes": "pink"}, "has no class 'pink'"),
        ({"max_detections": 0}, "max_detections"),
    ],
)
async def test_what_a_classifier_cannot_be_asked(world: World, options: dict[str, Any], says: str) -> None:
    response = await post(world, picture(1, 2, 3), **options)

    assert response.status_code == 422
    assert response.json()["code"] == "invalid_request"
    assert says in response.json()["detail"]
    assert not world.meter.recent()


async def test_it_is_listed_with_the_defaults_that_it_has(world: World) -> None:
    response = await world.client.get("/v1/models", headers=world.bearer())

    (model,) = response.json()["models"]
    assert model["task"] == "classification"
    assert model["defaults"] == {"confidence_threshold": 0.0, "max_detections": 5}


def test_a_detector_without_suppression_has_no_threshold_for_it() -> None:
    document = changed("postprocessing.nms.enabled", False, END_TO_END)
    final = ModelContract.parse(changed("postprocessing.nms.embedded", False, document))

    assert model_description(final)["defaults"] == {"confidence_threshold": 0.25, "max_detections": 300}


async def test_a_detector_is_served_beside_it(tier: Tier) -> None:
    contracts = [COLORS, SHAPES_AND_OTHER[0]]
    async with running_world(tier, contracts=contracts) as world:
        response = await world.client.get("/v1/models", headers=world.bearer())
        jpeg = encode(np.full((64, 128, 3), 255, np.uint8))
        found = await world.client.post("/v1/infer/shapes", content=jpeg, headers={**world.bearer(), **JPEG})

    by_name = {model["name"]: model for model in response.json()["models"]}
    assert by_name["shapes"]["defaults"]["iou_threshold"] == 0.45
    assert all("bbox" in each for each in found.json()["predictions"])


async def test_a_model_that_scores_other_classes_than_it_says_is_our_fault(tier: Tier) -> None:
    def two_classes(batch_nhwc: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.ones((len(batch_nhwc), 2), np.float32)

    async with running_world(tier, contracts=[COLORS], model=two_classes) as world:
        response = await post(world, picture(1, 2, 3))

    assert response.status_code == 500
    assert response.json()["code"] == "internal"


async def test_the_api_documents_both_forms_of_a_prediction(world: World) -> None:
    schemas = (await world.client.get("/openapi.json")).json()["components"]["schemas"]

    forms = schemas["PictureResult"]["properties"]["predictions"]["anyOf"]
    named = [form["items"]["$ref"].rpartition("/")[2] for form in forms]
    assert named == ["DetectedObject", "PredictedClass"]
    assert "bbox" in schemas["DetectedObject"]["required"]
    assert "bbox" not in schemas["PredictedClass"]["properties"]


async def test_thresholds_inside_the_graph_are_told_to_who_asks_for_others(tier: Tier) -> None:
    contract = ModelContract.parse(END_TO_END)

    def one_star(batch_nhwc: NDArray[np.uint8]) -> NDArray[np.float32]:
        rows = np.zeros((len(batch_nhwc), 300, 6), np.float32)
        rows[:, 0] = (10, 10, 50, 50, 0.9, 3)
        return rows

    async with running_world(tier, contracts=[contract], model=one_star) as world:
        headers = {**world.bearer(), "Content-Type": "image/png"}
        answers = [
            await world.client.post("/v1/infer", content=picture(1, 2, 3), params=options, headers=headers)
            for options in ({}, {"confidence_threshold": 0.95}, {"iou_threshold": 0.7})
        ]

    star, none, refused = (answer.json() for answer in answers)
    assert [each["class"] for each in star["predictions"]] == ["star"]
    assert none["predictions"] == []
    assert (refused["code"], refused["detail"]) == (
        "invalid_request",
        "iou_threshold is fixed inside the model 'shapes': 0.45.",
    )


def test_details_pass_on_what_the_export_wrote() -> None:
    measured = {"latency_ms": {"p50": 1.0, "p90": 2.0}}

    details = model_details(ModelContract.parse(changed("performance", measured, CLASSIFIER)))

    assert details["performance"] == measured
    assert details["validation"] == orjson.loads(CLASSIFIER)["validation"]
    assert details["task"] == "classification"
