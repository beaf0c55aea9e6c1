"""The certificate on the sample checkpoint: the honest export passes, and none of the spoilt ones does."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from export_pipeline.certificate.measurements import load_performance, local_folder
from export_pipeline.certificate.report import Certificate, load_certificate, summary
from export_pipeline.errors import ValidationFailed
from export_pipeline.sample.scenes import draw_scene
from export_pipeline.stages import validate
from tests.torch.export_pipeline.certificate.conftest import PICTURES, Edit, Job, MakeJob
from tests.torch.networks import make_network, save_checkpoint

PREDICTIONS = 161
"""Of the checkpoint in all golden pictures."""
PREDICTIONS_IN_SOME = 92
LETTERBOX = {"method": "letterbox", "size": (320, 320), "stride": 32}


def say(message: str, fraction: float | None = None) -> None:
    pass


def certify(job: Job) -> Certificate:
    folder, record = job
    for step in (validate.collect_pictures, validate.measure, validate.judge):
        step(folder, record, say)
    return load_certificate(folder)


def test_the_honest_export_passes(job: MakeJob) -> None:
    folder, record = job(pictures=str(PICTURES))

    certificate = certify((folder, record))

    file = certificate.paths["file"]
    assert certificate.passed
    assert file.predictions == file.matched == PREDICTIONS
    assert file.unmatched == file.class_disagreements == 0
    assert file.iou_min is not None
    assert file.iou_min > 0.9999
    assert file.confidence_max is not None
    assert file.confidence_max < 2e-5
    assert certificate.tensors.batch_sizes == (1, 1, 4)
    assert {part.part for part in certificate.tensors.parts} == {"boxes", "scores"}
    assert summary(certificate)["predictions"] == PREDICTIONS
    performance = load_performance(folder)
    assert performance is not None
    assert performance["latency_ms"]["p50"] <= performance["latency_ms"]["p90"]
    assert sorted(path.name for path in local_folder(folder).iterdir()) == [
        "checkpoint-golden.npz",
        "file-golden.npz",
        "local.json",
        "performance.json",
    ]


def test_measuring_again_gives_the_same_certificate(job: MakeJob) -> None:
    folder, record = job()

    certify((folder, record))
    first = folder.validation_file.read_bytes()
    certify((folder, record))

    assert folder.validation_file.read_bytes() == first


def _output_through(node_type: str, values: NDArray[Any], **attributes: Any) -> Edit:
    """A node of this type, with these values, behind everything."""

    def edit(model: onnx.ModelProto) -> None:
        graph = model.graph
        output = graph.output[0].name
        for node in graph.node:
            for index, name in enumerate(node.output):
                if name == output:
                    node.output[index] = "before_the_end"
        graph.initializer.append(numpy_helper.from_array(values, "at_the_end"))
        inputs = ["before_the_end", "at_the_end"]
        graph.node.append(helper.make_node(node_type, inputs, [output], **attributes))

    return edit


def _scaled(*factors: float) -> Edit:
    return _output_through("Mul", np.array(factors, np.float32).reshape(1, 8, 1))


def _reordered(*rows: int) -> Edit:
    return _output_through("Gather", np.array(rows, np.int64), axis=1)


def _bgr(model: onnx.ModelProto) -> None:
    graph = model.graph
    pixels = graph.input[0].name
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == pixels:
                node.input[index] = "swapped"
    graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0], np.int64), "bgr"))
    graph.node.insert(0, helper.make_node("Gather", [pixels, "bgr"], ["swapped"], axis=3))


def _weights_off_by(share: float) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        rng = np.random.default_rng(0)
        for initializer in model.graph.initializer:
            values = numpy_helper.to_array(initializer)
            if values.ndim == 4:
                noisy = (values * (1 + share * rng.standard_normal(values.shape))).astype(values.dtype)
                initializer.CopyFrom(numpy_helper.from_array(noisy, initializer.name))

    return edit


def _first_picture_for_all(model: onnx.ModelProto) -> None:
    """As a graph does that was traced with the batch of one taken for granted."""
    graph = model.graph
    pixels = graph.input[0].name
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == pixels:
                node.input[index] = "first"
    for name, value in (("zero", [0]), ("one", [1]), ("axis", [0])):
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
    graph.node.insert(0, helper.make_node("Slice", [pixels, "zero", "one", "axis"], ["only"]))
    graph.node.insert(1, helper.make_node("Shape", [pixels], ["shape"]))
    graph.node.insert(2, helper.make_node("Expand", ["only", "shape"], ["first"]))


@pytest.mark.parametrize(
    ("edit", "facts", "said"),
    [
        (_weights_off_by(1e-3), None, "The file does not answer as the checkpoint does"),
        (_weights_off_by(1e-4), None, "The file's scores in .* are not the checkpoint's"),
        (_scaled(1, 1, 0.99, 0.99, 1, 1, 1, 1), None, "77 too far off"),
        (_reordered(0, 1, 2, 3, 5, 4, 6, 7), None, "40 of another class"),
        (_bgr, None, "of another class"),
        (_first_picture_for_all, None, "The file's boxes in .* are not the checkpoint's"),
        (
            None,
            {"resize": {**LETTERBOX, "fill_value": 0}},
            "too far off",
        ),
        (None, {"resize": {**LETTERBOX, "method": "stretch"}}, "without a partner"),
    ],
    ids=[
        "noise",
        "less noise",
        "small",
        "classes",
        "BGR",
        "batch",
        "black border",
        "stretched",
    ],
)
def test_a_spoilt_export_fails_with_exit_code_4_and_leaves_its_evidence(
    edit: Edit | None, facts: dict[str, Any] | None, said: str, job: MakeJob
) -> None:
    folder, record = job(edit=edit, facts=facts)

    with pytest.raises(ValidationFailed, match=said) as raised:
        certify((folder, record))

    certificate = load_certificate(folder)
    assert raised.value.exit_code == 4
    assert not certificate.passed
    assert certificate.subject.model_sha256 == folder.model().sha256
    assert (local_folder(folder) / "file-golden.npz").exists()


def test_boxes_that_are_right_do_not_hide_scores_that_are_zero(job: MakeJob) -> None:
    """The tensors as a whole point in the same direction: only the part that is wrong says so."""
    folder, record = job(edit=_scaled(1, 1, 1, 1, 0, 0, 0, 0))

    with pytest.raises(ValidationFailed, match="77 without a partner, of 0 with a partner"):
        certify((folder, record))

    verdict = {part.part: part.passed for part in load_certificate(folder).tensors.parts}
    assert verdict == {"boxes": True, "scores": False}


def test_a_file_that_cannot_be_run_is_no_good(job: MakeJob) -> None:
    folder, record = job()
    path = folder.model_folder / folder.model().file
    path.write_bytes(path.read_bytes()[:5000])

    with pytest.raises(ValidationFailed, match="The exported file cannot be opened"):
        certify((folder, record))
    assert not folder.validation_file.exists()


@pytest.mark.parametrize(
    "config",
    [{"precision": "fp16"}, {"embed_nms": True}, {"embed_preprocessing": False}, {"max_batch_size": 1}],
)
def test_honest_exports_of_other_kinds_pass(config: dict[str, Any], job: MakeJob) -> None:
    certificate = certify(job(config=config))

    assert certificate.passed
    assert certificate.paths["file"].predictions == PREDICTIONS_IN_SOME
    assert certificate.paths["file"].unmatched == 0


@pytest.mark.parametrize(
    ("family", "task_type", "head"),
    [
        ("yolo11n", "classification", "native"),
        ("yolo26n", "detection", "end_to_end"),
        ("yolov8n", "segmentation", "native"),
        ("yolo26n", "pose", "end_to_end"),
        ("yolo11n", "obb", "native"),
    ],
)
def test_other_families_and_tasks_pass_by_what_can_be_compared(
    family: str, task_type: str, head: str, job: MakeJob, tmp_path: Path
) -> None:
    predicted = task_type in {"detection", "classification"}
    checkpoint = save_checkpoint(tmp_path / "best.pt", make_network(family, task_type))

    certificate = certify(job(checkpoint=checkpoint, config={"imgsz": 64, "head": head}))

    assert certificate.passed
    assert all(part.values for part in certificate.tensors.parts)
    assert ("file" in certificate.paths) is predicted
    assert (summary(certificate)["predictions"] > 0) is predicted


@pytest.fixture
def one_picture(tmp_path: Path) -> str:
    folder = tmp_path / "one"
    folder.mkdir()
    shutil.copy(PICTURES / "overlap_one_class.jpg", folder)
    return str(folder)


def test_one_picture_goes_through_in_a_batch_with_its_mirror_image(job: MakeJob, one_picture: str) -> None:
    certificate = certify(job(pictures=one_picture))

    assert certificate.passed
    assert certificate.tensors.batch_sizes == (1, 1, 2)


def test_one_picture_is_enough_to_see_a_batch_go_wrong(job: MakeJob, one_picture: str) -> None:
    with pytest.raises(ValidationFailed, match=r"The file's boxes in .* are not the checkpoint's"):
        certify(job(pictures=one_picture, edit=_first_picture_for_all))


@pytest.mark.parametrize("config", [{"confidence_threshold": 0.25}, {"embed_nms": True}])
def test_pictures_in_which_nothing_is_found_certify_nothing(
    config: dict[str, Any], job: MakeJob, tmp_path: Path
) -> None:
    (tmp_path / "blank").mkdir()
    cv2.imwrite(str(tmp_path / "blank/grey.png"), np.full((240, 320, 3), 114, np.uint8))
    folder, record = job(pictures=str(tmp_path / "blank"), config=config)

    with pytest.raises(ValidationFailed, match="The checkpoint finds nothing in the golden pictures: give"):
        certify((folder, record))

    assert len(load_certificate(folder).failures) == 1


def test_where_nothing_is_found_all_are_asked_again_lower(job: MakeJob, one_picture: str) -> None:
    certificate = certify(job(pictures=one_picture, config={"confidence_threshold": 1.0}))

    assert certificate.pictures.lowered
    assert certificate.pictures.asked is not None
    assert certificate.pictures.asked.confidence == 0.01
    assert any("asked again at 0.01" in note for note in certificate.notes)


def test_without_pictures_of_its_own_a_job_takes_ultralytics_photographs(job: MakeJob) -> None:
    folder, record = job(pictures=None)

    certificate = certify((folder, record))

    names = sorted(path.name for path in folder.pictures.iterdir())
    sizes = {cv2.imread(str(folder.pictures / name)).shape[:2] for name in names}
    assert certificate.pictures.count == len(names) == 12
    assert len(sizes) > 8
    assert certificate.pictures.source.startswith("bus.jpg and zidane.jpg of Ultralytics")
    assert certificate.paths["file"].predictions > 10


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve scenes as the sample detector was trained on, with their labels."""
    root = tmp_path_factory.mktemp("labelled")
    for name in ("images", "labels"):
        (root / name).mkdir()
    for seed in range(12):
        scene = draw_scene(40_000_000 + seed)
        width, height = scene.size_wh
        cv2.imwrite(str(root / f"images/{seed}.png"), scene.picture_rgb[..., ::-1])
        lines = [
            f"{each.class_id} {(x0 + x1) / 2 / width} {(y0 + y1) / 2 / height} "
            f"{(x1 - x0) / width} {(y1 - y0) / height}"
            for each in scene.objects
            for x0, y0, x1, y1 in [each.xyxy]
        ]
        (root / f"labels/{seed}.txt").write_text("\n".join(lines))
    (root / "data.yaml").write_text("val: images\nnames: [circle, square, triangle, star]\n")
    return root


def test_accuracy_is_measured_by_one_metric_beside_ultralytics_own(labelled: Path, job: MakeJob) -> None:
    certificate = certify(job(dataset=str(labelled)))

    accuracy = certificate.accuracy
    assert accuracy is not None
    assert accuracy.pictures == 12
    assert accuracy.drop["file"] == pytest.approx(0, abs=1e-4)
    assert accuracy.metrics["mAP50-95"]["checkpoint"] > 0.5
    for name in ("mAP50", "mAP50-95"):
        # Ultralytics counts a box for each of its classes, ours for its best one.
        assert accuracy.by_framework[name] == pytest.approx(accuracy.metrics[name]["checkpoint"], abs=0.02)


def test_an_export_that_is_less_accurate_says_by_how_much(labelled: Path, job: MakeJob) -> None:
    folder, record = job(dataset=str(labelled), edit=_scaled(1, 1, 1, 1, 1, 1, 1, 0))  # blind to stars

    with pytest.raises(ValidationFailed):
        certify((folder, record))

    certificate = load_certificate(folder)
    assert certificate.accuracy is not None
    assert certificate.accuracy.drop["file"] == pytest.approx(0.25, abs=0.05)
    assert any(failure.startswith("mAP50-95 of the file is") for failure in certificate.failures)
