from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import ultralytics
import yaml
from ultralytics.data.augment import classify_transforms

from export_pipeline.errors import BadInput, Unsupported
from export_pipeline.frameworks import OpenedModel, Thresholds, open_checkpoint, ultralytics_graph
from export_pipeline.request import ExportConfig, HeadChoice
from export_pipeline.sample.scenes import CLASS_NAMES, draw_scene
from tests.torch.networks import FAMILIES, draw_pictures, make_network, save_checkpoint

GOLDEN = Path(__file__).parents[3] / "golden"
ALL = Thresholds(confidence=0.001, iou=0.7, max_detections=300)
Open = Callable[[str, str], OpenedModel]

HEADS = {
    "detection": ("yolo_raw", "yolo_end_to_end"),
    "segmentation": ("yolo_raw_segmentation", "yolo_end_to_end_segmentation"),
    "pose": ("yolo_raw_pose", "yolo_end_to_end_pose"),
    "obb": ("yolo_raw_obb", "yolo_end_to_end_obb"),
}


# Facts


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task_type", [*HEADS, "classification"])
def test_facts_say_what_the_checkpoint_is(opened: Open, family: str, task_type: str) -> None:
    facts = opened(family, task_type).facts
    heads = HEADS.get(task_type, ("classification",))
    assert facts.task_type == task_type
    assert facts.class_names == ("cat", "dog", "fox")
    assert facts.heads == (heads if family == "yolo26n" else heads[:1])
    assert facts.trained_size_wh == (64, 64)
    assert (facts.stride, facts.framework, facts.framework_version) == (32, "ultralytics", "8.4.0")
    assert facts.architecture.startswith(family)
    assert facts.parameters > 1_000_000


def test_facts_of_the_committed_sample(sample: OpenedModel) -> None:
    assert sample.facts.architecture == "shapes"
    assert sample.facts.class_names == CLASS_NAMES
    assert sample.facts.parameters == 665_884
    assert sample.facts.trained_size_wh == (320, 320)
    assert sample.facts.sha256 == json.loads((GOLDEN / "predictions.json").read_text())["checkpoint_sha256"]


def test_the_same_file_is_opened_once_and_a_changed_one_again(tmp_path: Path) -> None:
    network = make_network("yolo11n", "classification")
    path = save_checkpoint(tmp_path / "best.pt", network)
    first = open_checkpoint(path)
    assert open_checkpoint(path) is first
    network.names = {0: "ant", 1: "bee", 2: "fly"}
    assert open_checkpoint(save_checkpoint(path, network)).facts.class_names == ("ant", "bee", "fly")


@pytest.fixture(scope="module")
def detector() -> Any:
    return make_network("yolo11n", "detection")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({0: "cat", 1: "dog"}, "names 2 classes; its network answers 3"),
        ({0: "a", 1: "b", 2: "c", 3: "d"}, "names 4 classes; its network answers 3"),
        (["cat", "dog"], "names 2 classes; its network answers 3"),
        ({0: "cat", 1: "dog", 5: "fox"}, "does not name its classes from 0 up"),
        ({0: "cat", 1: "dog", 2: " "}, "does not name its classes from 0 up"),
        ({0: "cat", 1: "dog", 2: 7}, "does not name its classes from 0 up"),
        ({}, "names 0 classes; its network answers 3"),
        ("cat", "does not name its classes from 0 up"),
        (["cat", "dog", "fox\n# Heading"], r"1 to 200 printable characters; 'fox\\n# Heading' is not"),
        (["cat", "dog", "\x1b[2J"], r"1 to 200 printable characters; '\\x1b\[2J' is not"),
        (["cat", "dog", "x" * 201], "1 to 200 printable characters; 'xxx"),
        (["cat", "dog", "\ud800"], r"1 to 200 printable characters; '\\ud800' is not"),
        (["cat", "dog", "cat"], "two classes are named 'cat'"),
    ],
)
def test_classes_unlike_the_network_s_answer_are_refused(
    detector: Any, names: Any, message: str, tmp_path: Path
) -> None:
    network = copy.deepcopy(detector)
    network.names = names
    with pytest.raises(BadInput, match=message):
        open_checkpoint(save_checkpoint(tmp_path / "best.pt", network))


def test_a_network_that_says_another_number_of_classes_than_it_answers_is_refused(
    detector: Any, tmp_path: Path
) -> None:
    network = copy.deepcopy(detector)
    network.model[-1].nc = 4
    network.names = dict(enumerate("abcd"))
    opened = open_checkpoint(save_checkpoint(tmp_path / "best.pt", network))
    with pytest.raises(BadInput, match=r"network does not run|names 4 classes; its network's answer"):
        opened.graph(ExportConfig(imgsz=(64, 64)))


@pytest.mark.parametrize(
    ("head", "shape"), [("raw", (2, 8, 84)), ("raw", (2, 6, 84)), ("end_to_end", (2, 300, 7))]
)
def test_a_detector_s_answer_has_no_nameless_columns(
    head: HeadChoice, shape: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_checkpoint(save_checkpoint(tmp_path / "best.pt", make_network("yolo26n", "detection")))
    monkeypatch.setattr(ultralytics_graph, "_output_shapes", lambda *_: [shape])
    with pytest.raises(BadInput, match=r"names 3 classes; its network's answer of shape .* is of others"):
        opened.graph(ExportConfig(imgsz=(64, 64), head=head))


def test_a_network_whose_layers_are_missing_is_damaged(detector: Any, tmp_path: Path) -> None:
    network = copy.deepcopy(detector)
    del network.model
    with pytest.raises(BadInput, match=r"best\.pt is damaged: its network cannot be read"):
        open_checkpoint(save_checkpoint(tmp_path / "best.pt", network))


def test_layers_that_do_not_fit_each_other_do_not_run(detector: Any, tmp_path: Path) -> None:
    network = copy.deepcopy(detector)
    network.model[1] = torch.nn.Identity()
    network.model[1].f, network.model[1].i = -1, 1
    opened = open_checkpoint(save_checkpoint(tmp_path / "best.pt", network))
    with pytest.raises(BadInput, match="The checkpoint's network does not run"):
        opened.graph(ExportConfig(imgsz=(64, 64)))


@pytest.mark.parametrize(
    ("transforms", "refused"),
    [
        (classify_transforms(64), False),
        (classify_transforms(224), False),
        (classify_transforms(64, mean=(0.5, 0.5, 0.5)), True),
        (classify_transforms(64, std=(0.5, 0.5, 0.5)), True),
        (classify_transforms(64, interpolation="BICUBIC"), True),
    ],
    ids=["usual", "of another size", "mean", "std", "bicubic"],
)
def test_a_classification_that_prepares_pictures_otherwise_is_unsupported(
    transforms: Any, refused: bool, tmp_path: Path
) -> None:
    network = make_network("yolo11n", "classification")
    network.transforms = transforms
    path = save_checkpoint(tmp_path / "best.pt", network)
    if refused:
        with pytest.raises(Unsupported, match="in a way of its own"):
            open_checkpoint(path)
    else:
        assert open_checkpoint(path).facts.task_type == "classification"


# Options


@pytest.mark.parametrize(
    ("task_type", "size_wh", "message"),
    [
        (
            "detection",
            (100, 64),
            "width of 100 pixels is not a multiple .* 32; the nearest that would do: 96 or 128",
        ),
        ("detection", (64, 33), "height of 33 pixels .*: 32 or 64"),
        ("classification", (224, 200), "height of 200 pixels .*: 192 or 224"),
        ("classification", (64, 96), "A classification takes a square; 64 x 96 is none"),
    ],
)
def test_a_size_that_does_not_fit_is_refused_with_the_nearest_that_do(
    opened: Open, task_type: str, size_wh: tuple[int, int], message: str
) -> None:
    model = opened("yolo11n", task_type)
    with pytest.raises(BadInput, match=message):
        model.graph(ExportConfig(imgsz=size_wh))
    with pytest.raises(BadInput, match=message):
        model.predict([], ALL, size_wh)


@pytest.mark.parametrize(
    ("family", "task_type", "options", "message"),
    [
        ("yolo11n", "detection", {"head": "end_to_end"}, "has no end_to_end head; what it has is yolo_raw"),
        ("yolo11n", "classification", {"head": "end_to_end"}, "has no end_to_end head"),
        ("yolo11n", "segmentation", {"embed_nms": True}, "embed_nms is for raw detection heads; this is"),
        ("yolo11n", "classification", {"embed_nms": True}, "embed_nms is for raw detection heads"),
    ],
)
def test_a_head_that_is_not_there_is_unsupported(
    opened: Open, family: str, task_type: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(Unsupported, match=message):
        opened(family, task_type).graph(ExportConfig(**options))


def test_without_a_size_the_graph_is_of_the_trained_one(opened: Open) -> None:
    graph = opened("yolov8n", "detection").graph(ExportConfig())
    assert graph.resize.size == (64, 64)
    assert graph.inputs[0].shape == (-1, 64, 64, 3)


@pytest.mark.parametrize(
    ("noted", "expected"), [(100, 128), ([96, 64], 96), ("big", 640), (0, 640), (None, 640)]
)
def test_the_trained_size_is_rounded_as_training_does_or_the_usual_one(
    detector: Any, noted: Any, expected: int, tmp_path: Path
) -> None:
    path = save_checkpoint(tmp_path / "best.pt", detector, train_args={"imgsz": noted})
    assert open_checkpoint(path).facts.trained_size_wh == (expected, expected)


def test_max_detections_is_how_many_rows_an_end_to_end_head_answers(opened: Open) -> None:
    config = ExportConfig(head="end_to_end", imgsz=(64, 64), max_detections=7)
    assert opened("yolo26n", "detection").graph(config).outputs[0].shape == (-1, 7, 6)


def test_yolo26_s_two_heads_are_two_graphs(opened: Open) -> None:
    model = opened("yolo26n", "detection")
    batch = draw_pictures(1, (64, 64), 0)
    raw, end_to_end = (
        model.raw_outputs(ExportConfig(head=head, imgsz=(64, 64)), batch)[0] for head in ("raw", "end_to_end")
    )
    assert (raw.shape, end_to_end.shape) == ((1, 7, 84), (1, 84, 6))
    assert not np.isclose(raw[0, 4:].max(), end_to_end[0, 0, 4], atol=1e-6)


# Ultralytics' own predict and val


def test_predict_is_ultralytics_own(sample: OpenedModel) -> None:
    """The committed golden predictions were made by `YOLO(path).predict`."""
    golden = json.loads((GOLDEN / "predictions.json").read_text())
    files = [GOLDEN / "pictures" / name for name in golden["pictures"]]
    found = sample.predict(files, Thresholds(0.25, 0.45, 300), (320, 320))
    assert found.keys() == golden["pictures"].keys()
    for name, expected in golden["pictures"].items():
        rows = expected["predictions"]
        assert (found[name].width, found[name].height) == (expected["width"], expected["height"])
        assert found[name].class_id.tolist() == [row["class_id"] for row in rows]
        np.testing.assert_allclose(found[name].confidence, [row["confidence"] for row in rows], atol=2e-4)
        xyxy = found[name].xyxy
        assert xyxy is not None
        boxes = np.array([row["bbox"] for row in rows]).reshape(-1, 4)
        np.testing.assert_allclose(xyxy, boxes, atol=0.02)


def test_predict_goes_by_its_thresholds(sample: OpenedModel) -> None:
    crowd = [GOLDEN / "pictures" / "crowd.jpg"]
    few = sample.predict(crowd, Thresholds(0.25, 0.45, 7), (320, 320))["crowd.jpg"]
    sure = sample.predict(crowd, Thresholds(0.9, 0.45, 300), (320, 320))["crowd.jpg"]
    assert len(few.confidence) == 7
    assert 0 < len(sure.confidence) < 60
    assert sure.confidence.min() > 0.9


@pytest.mark.parametrize("head", ["native", "raw", "end_to_end"])
def test_predict_and_the_graph_are_of_the_same_head(opened: Open, head: Any, tmp_path: Path) -> None:
    """The most confident box of a picture of the input's own size is the graph's."""
    model = opened("yolo26n", "detection")
    config = ExportConfig(imgsz=(96, 64), head=head)
    pixels = draw_pictures(1, (96, 64), 5)
    cv2.imwrite(str(tmp_path / "a.png"), pixels[0, ..., ::-1])
    found = model.predict([tmp_path / "a.png"], ALL, (96, 64), head)["a.png"]
    (output,) = model.raw_outputs(config, pixels)
    best = output[0, 0, 4] if head == "end_to_end" else output[0, 4:].max()
    assert found.confidence[0] == pytest.approx(best, abs=1e-5)


def test_a_classification_answers_its_best_classes(opened: Open, tmp_path: Path) -> None:
    model = opened("yolo11n", "classification")
    pixels = draw_pictures(1, (64, 64), 5)
    cv2.imwrite(str(tmp_path / "a.png"), pixels[0, ..., ::-1])
    (scores,) = model.raw_outputs(ExportConfig(imgsz=(64, 64)), pixels)
    order = np.argsort(-scores[0])
    found = model.predict([tmp_path / "a.png"], Thresholds(0.0, 0.0, 5), (64, 64))["a.png"]
    assert found.xyxy is None
    assert found.class_id.tolist() == order.tolist()
    np.testing.assert_allclose(found.confidence, scores[0][order], atol=1e-5)
    threshold = float(np.sort(scores[0])[1])
    above = model.predict([tmp_path / "a.png"], Thresholds(threshold + 1e-4, 0.0, 5), (64, 64))["a.png"]
    assert above.class_id.tolist() == order[:1].tolist()
    one = model.predict([tmp_path / "a.png"], Thresholds(0.0, 0.0, 1), (64, 64))["a.png"]
    assert one.class_id.tolist() == order[:1].tolist()


def test_a_broken_picture_is_named(sample: OpenedModel, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff not a picture")
    with pytest.raises(BadInput, match=r"cannot read the picture broken\.jpg"):
        sample.predict([tmp_path / "broken.jpg"], ALL, (320, 320))


def test_tasks_with_more_than_boxes_are_not_predicted(opened: Open, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="Predictions of pose cannot be compared yet"):
        opened("yolo11n", "pose").predict([tmp_path / "a.png"], ALL, (64, 64))


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve scenes with labels, as Ultralytics keeps them."""
    folder = tmp_path_factory.mktemp("labelled")
    for name in ("images", "labels"):
        (folder / name / "val").mkdir(parents=True)
    for index in range(12):
        scene = draw_scene(10_000_000 + index)
        width, height = scene.size_wh
        cv2.imwrite(str(folder / f"images/val/{index:02}.jpg"), scene.picture_rgb[..., ::-1])
        (folder / f"labels/val/{index:02}.txt").write_text(
            "".join(
                f"{one.class_id} {(x0 + x1) / 2 / width} {(y0 + y1) / 2 / height} "
                f"{(x1 - x0) / width} {(y1 - y0) / height}\n"
                for one in scene.objects
                for x0, y0, x1, y1 in [one.xyxy]
            )
        )
    description = {
        "path": str(folder),
        "train": "images/val",
        "val": "images/val",
        "names": list(CLASS_NAMES),
    }
    (folder / "data.yaml").write_text(yaml.safe_dump(description))
    return folder


def files_of(folder: Path) -> dict[str, int]:
    return {str(file): file.stat().st_mtime_ns for file in sorted(folder.rglob("*"))}


def test_validate_is_ultralytics_own_and_leaves_nothing_behind(
    sample: OpenedModel, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = files_of(labelled)
    figures = sample.validate(labelled / "data.yaml", (320, 320))
    assert files_of(labelled) == before
    assert not list(tmp_path.rglob("*"))
    assert figures.keys() == {"mAP50", "mAP50-95"}
    model = ultralytics.YOLO(Path(__file__).parents[4] / "export_pipeline" / "sample" / "shapes.pt")
    own = shutil.copytree(labelled, tmp_path / "own")
    (own / "data.yaml").write_text((own / "data.yaml").read_text().replace(str(labelled), str(own)))
    metrics = model.val(
        data=str(own / "data.yaml"),
        imgsz=320,
        rect=False,
        plots=False,
        workers=0,
        device="cpu",
        project=str(tmp_path / "runs"),
        verbose=False,
    )
    assert figures == pytest.approx({"mAP50": metrics.box.map50, "mAP50-95": metrics.box.map}, abs=1e-6)
    assert 0.5 < figures["mAP50-95"] < figures["mAP50"] <= 1


def test_validate_takes_the_first_pictures(sample: OpenedModel, labelled: Path) -> None:
    few = sample.validate(labelled / "data.yaml", (320, 320), max_pictures=2)
    assert few != sample.validate(labelled / "data.yaml", (320, 320))


def test_validate_measures_squares_only(sample: OpenedModel, labelled: Path) -> None:
    assert sample.validate(labelled / "data.yaml", (320, 256)) == {}


def test_a_classification_is_validated_by_the_names_of_its_classes(opened: Open, tmp_path: Path) -> None:
    """Pictures in the folder that the network would choose: top-1 is 1; all in one other folder: 0."""
    model = opened("yolo11n", "classification")
    pixels = draw_pictures(4, (64, 64), 3)
    (scores,) = model.raw_outputs(ExportConfig(imgsz=(64, 64)), pixels)
    for root, shift in (("right", 0), ("wrong", 1)):
        for name in ("cat", "dog", "fox"):
            (tmp_path / root / "val" / name).mkdir(parents=True)
        for index, best in enumerate(scores.argmax(axis=1).tolist()):
            name = model.facts.class_names[(best + shift) % 3]
            cv2.imwrite(str(tmp_path / root / "val" / name / f"{index}.png"), pixels[index, ..., ::-1])
    assert model.validate(tmp_path / "right", (64, 64)) == {"top1": 1.0, "top5": 1.0}
    assert model.validate(tmp_path / "wrong", (64, 64))["top1"] == 0.0


def test_a_data_set_of_other_classes_is_refused(opened: Open, labelled: Path) -> None:
    with pytest.raises(BadInput, match="has 4 classes, the checkpoint 3"):
        opened("yolo11n", "detection").validate(labelled / "data.yaml", (64, 64))


def test_ultralytics_was_told_to_keep_to_itself() -> None:
    from ultralytics.utils import AUTOINSTALL, ONLINE, SETTINGS_FILE

    assert not AUTOINSTALL
    assert not ONLINE
    assert str(SETTINGS_FILE).startswith(os.environ["YOLO_CONFIG_DIR"])
