"""The package's own executor against the oracle, the golden predictions, and torchvision's rules."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from export_pipeline import reference
from export_pipeline.reference import Detection
from export_pipeline.runtimes.python import model_wrapper
from export_pipeline.runtimes.python.model_wrapper import ModelWrapper, decode_rgb
from serving.vision.decode import decode_rgb as gateway_decode_rgb
from tests.support.export_jobs import CLASS_NAMES, FINAL_ROWS, KINDS, SIDE_PX, Kind, make_entry
from tests.support.same_detections import assert_same_detections, from_json

REPOSITORY = Path(__file__).parents[5]
PICTURES = REPOSITORY / "tests/golden/pictures"
GOLDEN: dict[str, Any] = json.loads((REPOSITORY / "tests/golden/predictions.json").read_bytes())["pictures"]
GREY = np.full((20, 40, 3), 128, np.uint8)
"""Twice as wide as high: in the 32 px input it is 32 x 16, with 8 rows of border above and below."""

Open = Callable[..., ModelWrapper]


@pytest.fixture
def open_model(tmp_path: Path) -> Open:
    """A tiny graph of some kind; keywords, spelt as dotted paths, change its metadata."""

    def open_changed(kind: Kind | str, changes: dict[str, Any] | None = None) -> ModelWrapper:
        shutil.rmtree(tmp_path / "job", ignore_errors=True)
        folder = make_entry(tmp_path / "job", kind) / "1"
        metadata = json.loads((folder / "metadata.json").read_bytes())
        for path, value in (changes or {}).items():
            *parents, last = path.split(".")
            target = metadata
            for part in parents:
                target = target[int(part)] if part.isdigit() else target[part]
            target[last] = value
        (folder / "metadata.json").write_text(json.dumps(metadata))
        return ModelWrapper(folder, threads=1)

    return open_changed


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> ModelWrapper:
    folder = tmp_path_factory.mktemp("shapes")
    shutil.copy(REPOSITORY / "model_repo/shapes/1/model.onnx", folder)
    shutil.copy(REPOSITORY / "model_repo/shapes/metadata.json", folder)
    return ModelWrapper(folder, threads=1)


def found(answer: dict[str, Any]) -> list[Any]:
    """(class, confidence, box) of each."""
    return [(each["class"], round(each["confidence"], 4), each["bbox"]) for each in answer["predictions"]]


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_pictures_have_the_boxes_of_ultralytics_own_predict(shapes: ModelWrapper, name: str) -> None:
    answer = shapes.predict(PICTURES / name)

    assert answer["image"] == {"width": GOLDEN[name]["width"], "height": GOLDEN[name]["height"]}
    expected = [from_json(each) for each in GOLDEN[name]["predictions"]]
    assert_same_detections([from_json(each) for each in answer["predictions"]], expected)
    assert all(CLASS_NAMES[each["class_id"]] == each["class"] for each in answer["predictions"])


def test_a_batch_gives_each_picture_what_it_gets_alone(
    shapes: ModelWrapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_wrapper, "PICTURES_AT_A_TIME", 2)
    names = ["crowd.jpg", "no_object.jpg", "webp.webp", "tiny.png", "portrait.jpg"]

    together = shapes.predict_batch([PICTURES / name for name in names])

    assert [len(each["predictions"]) for each in together] == [
        len(GOLDEN[name]["predictions"]) for name in names
    ]
    for name, answer in zip(names, together, strict=True):
        alone = [from_json(each) for each in shapes.predict(PICTURES / name)["predictions"]]
        assert_same_detections([from_json(each) for each in answer["predictions"]], alone)
    assert shapes.predict_batch([]) == []


@pytest.mark.parametrize("name", GOLDEN)
def test_pictures_are_decoded_as_the_gateway_decodes_them(name: str) -> None:
    data = (PICTURES / name).read_bytes()

    assert np.array_equal(decode_rgb(data), gateway_decode_rgb(data, max_pixels=50_000_000))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_every_orientation_is_turned_upright(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :16] = 255
    path = tmp_path / f"picture{suffix}"
    Image.fromarray(pixels).save(path, exif=exif)

    turned = decode_rgb(path.read_bytes())

    assert np.array_equal(turned, gateway_decode_rgb(path.read_bytes(), max_pixels=1000))
    assert turned.shape[:2] == ((16, 32) if orientation < 5 else (32, 16))


def animation(suffix: str, tmp_path: Path) -> bytes:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    return (tmp_path / f"a.{suffix}").read_bytes()


@pytest.mark.parametrize(
    "data", [b"", b"no picture", b"\xff\xd8\xff\xe0", b"RIFF\0\0\0\0WEBP", b"GIF89a", b"II*\0", b"BM"]
)
def test_what_is_no_picture_is_refused(shapes: ModelWrapper, data: bytes) -> None:
    with pytest.raises(ValueError, match="picture"):
        shapes.predict(data)


@pytest.mark.parametrize("suffix", ["png", "webp", "gif"])
def test_an_animation_is_refused(shapes: ModelWrapper, suffix: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"animated|not a JPEG"):
        shapes.predict(animation(suffix, tmp_path))


def random_rows(seed: int, head: str) -> NDArray[np.float32]:
    """Crowded, so that boxes overlap; quarters of pixels, so that no rounding decides."""
    random = np.random.default_rng(seed)
    count = 60
    centre = random.integers(0, 4 * SIDE_PX, (count, 2)) / 4
    size = random.integers(8, 60, (count, 2)) / 2
    if head == "yolo_raw":
        scores = random.random((count, len(CLASS_NAMES)))
        rows: NDArray[np.float32] = np.concatenate([centre, size, scores], axis=1).T.astype(np.float32)
        return rows
    class_id = random.integers(0, len(CLASS_NAMES), (count, 1))
    corners = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
    confidence = random.random((count, 1))
    rows = np.concatenate([corners, confidence, class_id], axis=1, dtype=np.float32)
    return rows  # noqa: RET504  # numpy 1.26 types the call itself as Any


@pytest.mark.parametrize("head", ["yolo_raw", "yolo_end_to_end"])
@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize("classes", [None, ["star", 0, "1"]])
@pytest.mark.parametrize("iou_threshold", [0.0, 0.3, 1.0])
def test_random_rows_become_what_the_oracle_makes_of_them(
    open_model: Open,
    head: Any,
    class_agnostic: bool,
    classes: list[str | int] | None,
    iou_threshold: float,
) -> None:
    for seed, (width, height) in enumerate([(40, 20), (32, 32), (7, 90)] * 3):
        rows = random_rows(seed, head)
        kind = Kind("detection", head, {"predictions": rows}, ("NCA" if head == "yolo_raw" else "NRF",))
        model = open_model(
            kind,
            {"postprocessing.nms.enabled": True, "postprocessing.nms.class_agnostic": class_agnostic},
        )

        answer = model.predict(
            np.zeros((height, width, 3), np.uint8),
            confidence_threshold=0.25,
            iou_threshold=iou_threshold,
            max_detections=9,
            classes=classes,
        )

        read = reference.read_yolo_raw if head == "yolo_raw" else reference.read_yolo_end_to_end
        candidates = read(rows, 0.25, None if classes is None else [3, 0, 1])
        kept = reference.nms(candidates, iou_threshold, 9, class_agnostic=class_agnostic)
        expected = [
            Detection(
                reference.unletterbox_box(one.box, width, height, SIDE_PX, SIDE_PX),
                one.confidence,
                one.class_id,
            )
            for one in kept
        ]
        assert expected
        assert [each["class_id"] for each in answer["predictions"]] == [each.class_id for each in expected]
        for entry, one in zip(answer["predictions"], expected, strict=True):
            assert entry["confidence"] == pytest.approx(one.confidence, abs=1e-6)
            assert entry["bbox"] == pytest.approx(one.box, abs=2e-3)


@pytest.mark.parametrize("kind", ["raw", "end_to_end", "embedded_nms", "half", "fixed", "normalised_outside"])
def test_every_form_of_detector_finds_the_same(open_model: Open, kind: str) -> None:
    half = kind == "half"

    answers = open_model(kind).predict_batch([GREY, GREY[:10]])

    circle, square = (0.8999 if half else 0.9), (0.7998 if half else 0.8)
    assert found(answers[0]) == [
        ("circle", pytest.approx(circle, abs=2e-4), [13.75, 3.75, 26.25, 16.25]),
        ("square", pytest.approx(square, abs=2e-4), [7.5, 0.0, 12.5, 2.5]),
    ]
    assert answers[0]["image"] == {"width": 40, "height": 20}
    assert answers[1]["image"] == {"width": 40, "height": 10}


@pytest.mark.parametrize(
    "row", [(np.nan, 0), (np.inf, 0), (0.9, -1), (0.9, 4), (0.9, np.nan), (0.9, 1e30), (0.25, 0)]
)
def test_rows_without_a_confidence_or_a_class_are_none(open_model: Open, row: tuple[float, float]) -> None:
    rows = np.array([[1, 1, 9, 9, *row], [1, np.nan, 9, 9, 0.9, 0], [1, 9, 9, 20, 0.5, 2]], np.float32)
    model = open_model(Kind("detection", "yolo_end_to_end", {"predictions": rows}, ("NRF",)))

    assert [each["class"] for each in model.predict(GREY)["predictions"]] == ["triangle"]


def test_fractions_of_the_input_are_its_pixels(open_model: Open) -> None:
    rows = FINAL_ROWS.copy()
    rows[:, :4] /= SIDE_PX
    kind = Kind("detection", "yolo_end_to_end", {"predictions": rows}, ("NRF",))

    answer = open_model(kind, {"postprocessing.output_format.coordinates": "normalized"}).predict(GREY)

    assert found(answer) == found(open_model("end_to_end").predict(GREY))


def torchvision_crop(picture_rgb: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """`Resize(size)` on a PIL image, then `CenterCrop(size)`, as torchvision's sources have it."""
    height, width = picture_rgb.shape[:2]
    short, long = (width, height) if width <= height else (height, width)
    new_short, new_long = size, int(size * long / short)
    new_width, new_height = (new_short, new_long) if width <= height else (new_long, new_short)
    resized = Image.fromarray(picture_rgb).resize((new_width, new_height), Image.Resampling.BILINEAR)
    top, left = round((new_height - size) / 2.0), round((new_width - size) / 2.0)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize(
    "shape", [(32, 32), (33, 32), (32, 35), (100, 64), (101, 64), (63, 200), (10, 17), (600, 33)]
)
def test_a_classifier_sees_the_middle_as_torchvision_cuts_it(
    open_model: Open, shape: tuple[int, int]
) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (*shape, 3)).astype(np.uint8)

    row = open_model("classification").preprocess(picture)

    assert np.array_equal(row, torchvision_crop(picture, SIDE_PX))


def test_a_strip_that_would_fill_the_memory_is_refused(open_model: Open) -> None:
    with pytest.raises(ValueError, match="1000 times"):
        open_model("classification").predict(np.zeros((1, 1001, 3), np.uint8))


def test_the_caller_normalises_where_the_graph_does_not(open_model: Open) -> None:
    changes = {
        "preprocessing.normalize": {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.25, 1.0], "scale": 1 / 255},
        "preprocessing.format.color_space": "BGR",
    }
    picture = np.random.default_rng(2).integers(0, 256, (SIDE_PX, SIDE_PX, 3)).astype(np.uint8)

    row = open_model("normalised_outside", changes).preprocess(picture)

    expected = (picture[..., ::-1] / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.25, 1.0]
    assert row.dtype == np.float32
    assert row.shape == (3, SIDE_PX, SIDE_PX)
    assert np.allclose(row, expected.transpose(2, 0, 1), atol=1e-6)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [False, True])
def test_stretching_by_either_library(open_model: Open, interpolation: str, antialias: bool) -> None:
    picture = np.random.default_rng(3).integers(0, 256, (90, 50, 3)).astype(np.uint8)
    model = open_model(
        "raw",
        {
            "preprocessing.resize.method": "stretch",
            "preprocessing.resize.interpolation": interpolation,
            "preprocessing.resize.antialias": antialias,
        },
    )

    row = model.preprocess(picture)

    size = (SIDE_PX, SIDE_PX)
    if antialias:
        expected = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling[interpolation.upper()]))
    else:
        flag = cv2.INTER_LINEAR if interpolation == "bilinear" else cv2.INTER_CUBIC
        expected = np.asarray(cv2.resize(picture, size, interpolation=flag))
    assert np.array_equal(row, expected)
    # The circle's box covers a third of either side of the input, and so of the picture.
    assert found(model.predict(picture))[0][2] == [17.188, 30.938, 32.812, 59.062]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, ["square", "star", "circle", "triangle"]),
        ({"max_detections": 2}, ["square", "star"]),
        ({"confidence_threshold": 0.1}, ["square", "star"]),
        ({"classes": ["circle", 3]}, ["star", "circle"]),
        ({"classes": []}, []),
    ],
)
def test_a_classifier_answers_its_best_classes(
    open_model: Open, asked: dict[str, Any], expected: list[str]
) -> None:
    """The circle and the triangle are equal: the lower class comes first."""
    answer = open_model("classification").predict(GREY, **asked)

    assert [each["class"] for each in answer["predictions"]] == expected
    assert all(set(each) == {"class", "class_id", "confidence"} for each in answer["predictions"])


def test_a_score_of_nothing_is_answered_where_all_are_asked_for(open_model: Open) -> None:
    kind = Kind(
        "classification", "classification", {"scores": np.array([0, 1, 0, np.nan], np.float32)}, ("NC",)
    )

    assert [each["class_id"] for each in open_model(kind).predict(GREY)["predictions"]] == [1, 0, 2]


def test_of_many_equal_classes_the_first_are_answered(open_model: Open) -> None:
    names = tuple(f"class {index}" for index in range(100))
    scores = np.where(np.arange(100) % 2, 0.25, 0.5).astype(np.float32)
    kind = Kind("classification", "classification", {"scores": scores}, ("NC",), class_names=names)

    answer = open_model(kind).predict(GREY, max_detections=60)

    assert [each["class_id"] for each in answer["predictions"]] == [*range(0, 100, 2), *range(1, 20, 2)]


@pytest.mark.parametrize(
    ("kind", "asked", "says"),
    [
        ("raw", {"confidence_threshold": -0.1}, "between 0 and 1"),
        ("raw", {"confidence_threshold": float("nan")}, "between 0 and 1"),
        ("raw", {"iou_threshold": 1.1}, "between 0 and 1"),
        ("raw", {"max_detections": 0}, "1 and 1000"),
        ("raw", {"max_detections": 1001}, "1 and 1000"),
        ("raw", {"classes": ["cross"]}, "no class 'cross'"),
        ("raw", {"classes": [4]}, "no class 4"),
        ("raw", {"classes": ["²"]}, "no class"),
        ("embedded_nms", {"confidence_threshold": 0.2}, "none below 0.25"),
        ("embedded_nms", {"iou_threshold": 0.5}, "0.45 inside"),
        ("embedded_nms", {"max_detections": 301}, "300 at most"),
        ("classification", {"iou_threshold": 0.45}, "no boxes"),
        ("segmentation", {}, "use preprocess and run"),
    ],
)
def test_options_that_the_model_cannot_honour(
    open_model: Open, kind: str, asked: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        open_model(kind).predict(GREY, **asked)


def test_suppression_in_the_graph_can_be_asked_for_less(open_model: Open) -> None:
    model = open_model("embedded_nms")

    assert [each["class"] for each in model.predict(GREY, confidence_threshold=0.85)["predictions"]] == [
        "circle"
    ]
    assert len(model.predict(GREY, iou_threshold=0.45, max_detections=1)["predictions"]) == 1


def test_the_tensors_of_a_head_that_is_not_read_here(open_model: Open) -> None:
    model = open_model("segmentation")

    rows, prototypes = model.run(np.stack([model.preprocess(GREY)] * 3))

    assert rows.shape == (3, 40, 2)
    assert prototypes.shape == (3, 32, 8, 8)


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("raw", "schema_version", "2.0"),
        ("raw", "model_info.task_type", "counting"),
        ("raw", "model_info.task_type", "classification"),
        ("raw", "model_info.export_format", "openvino"),
        ("raw", "preprocessing.resize.method", "tile"),
        ("raw", "preprocessing.resize.interpolation", "lanczos"),
        ("raw", "preprocessing.resize.size", [32, 64]),
        ("raw", "preprocessing.resize.fill_value", 256),
        ("raw", "preprocessing.format.color_space", "GRAY"),
        ("raw", "preprocessing.format.input_layout", "NCHW"),
        ("raw", "preprocessing.format.dtype", "float32"),
        ("raw", "preprocessing.embedded", False),
        ("normalised_outside", "preprocessing.normalize.mean", [0.0, 0.0]),
        ("raw", "postprocessing.output_format.head", "detr"),
        ("raw", "postprocessing.output_format.head", "yolo_end_to_end"),
        ("raw", "postprocessing.output_format.bbox_format", "xyxy"),
        ("raw", "postprocessing.output_format.coordinates", "miles"),
        ("raw", "postprocessing.nms.embedded", True),
        ("raw", "postprocessing.nms.iou_threshold", "0.45"),
        ("raw", "postprocessing.nms", {}),
        ("raw", "classes", [{"id": 0, "name": "circle"}]),
        ("raw", "classes.0.id", 7),
        ("classification", "classes", [{"id": 0, "name": "circle"}]),
        ("classification", "postprocessing.classification", {"top_k": None, "confidence_threshold": 0}),
        ("raw", "input_spec", []),
        ("raw", "input_spec.0.name", "pictures"),
        ("raw", "input_spec.0.shape", [0, 32, 32, 3]),
        ("raw", "output_spec.0.name", "boxes"),
        ("raw", "model_info.model_file.sha256", "0" * 64),
        ("raw", "model_info.model_file.name", "../1/model.onnx"),
    ],
)
def test_a_contract_that_is_not_understood_is_refused(
    open_model: Open, kind: str, path: str, value: object
) -> None:
    open_model(kind)
    with pytest.raises(ValueError, match=r"metadata\.json"):
        open_model(kind, {path: value})


def test_what_a_later_minor_version_adds_is_let_through(open_model: Open) -> None:
    assert found(open_model("raw", {"schema_version": "1.9", "model_info.author": "me"}).predict(GREY))


@pytest.mark.parametrize("picture", [GREY[..., 0], GREY.astype(np.float32), GREY[:0], GREY[..., :2]])
def test_pixels_that_are_no_rgb_picture_are_refused(open_model: Open, picture: Any) -> None:
    with pytest.raises(ValueError, match="uint8 RGB"):
        open_model("raw").predict(picture)


def test_it_needs_no_pillow_where_nothing_is_smoothed(
    open_model: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)

    assert open_model("raw").predict(GREY)["predictions"]
    with pytest.raises(ImportError):
        open_model("classification").predict(GREY)


def test_every_kind_is_covered() -> None:
    assert set(KINDS) == {
        *("raw", "end_to_end", "embedded_nms", "half", "fixed", "normalised_outside"),
        *("classification", "segmentation"),
    }
