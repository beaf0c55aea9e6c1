"""The Triton entry and the package of one job, as folders and files."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from export_pipeline import runtimes
from export_pipeline.certificate.agreement import Agreement
from export_pipeline.certificate.measurements import local_folder
from export_pipeline.certificate.report import Certificate, GatewayPath, Pictures, Subject, summary
from export_pipeline.certificate.tensors import TensorAgreement
from export_pipeline.certificate.tolerances import tolerances_for
from export_pipeline.errors import BadInput, ExportError
from export_pipeline.job import JobFolder, JobRecord
from export_pipeline.packaging.verify import verify_package
from export_pipeline.stages.package import build_entry, build_package, write_entry
from tests.support.export_jobs import KINDS, PERFORMANCE, certify, make_job
from tests.support.packages import say_nothing, write_package

WRAPPER = {"model_wrapper.py", "requirements.txt", "example.py"}


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def certificate_of(folder: JobFolder, record: JobRecord) -> Certificate:
    """Of a job whose file answered as its checkpoint did, and whose measurements lie there."""
    model, checkpoint = folder.model(), folder.checkpoint()
    agreement = Agreement(
        pictures=2,
        predictions=9,
        answered=9,
        matched=9,
        unmatched=0,
        at_threshold=0,
        class_disagreements=0,
        iou_min=0.9991,
        iou_mean=0.9999,
        confidence_max=0.0002,
        disagreeing=0,
        passed=True,
        failures=(),
    )
    certificate = Certificate(
        passed=True,
        failures=(),
        notes=(),
        subject=Subject(
            model_name=record.request.name,
            task_type=checkpoint.task_type,
            framework=checkpoint.framework,
            export_format=model.export_format,
            precision=model.precision,
            head=model.head,
            nms_embedded=model.nms_embedded,
            checkpoint_sha256=checkpoint.sha256,
            model_sha256=model.sha256,
        ),
        tolerances=tolerances_for("fp32"),
        tensors=TensorAgreement(batch_sizes=(1,), parts=(), passed=True),
        pictures=Pictures(count=2, source="two photographs", asked=None, lowered=False),
        paths={"file": agreement, "gateway": agreement},
        gateway=GatewayPath(served=True, reason=None, transport="http", versions={}),
        accuracy=None,
        versions={},
    )
    folder.write("validation.json", certificate.to_json())
    folder.write(local_folder(folder) / "performance.json", json.dumps(PERFORMANCE).encode())
    return certificate


@pytest.mark.parametrize("kind", KINDS)
def test_an_entry_holds_one_version_and_the_same_on_top(tmp_path: Path, kind: str) -> None:
    folder, record = make_job(tmp_path / "job", kind, name="mine", version=4)
    (tmp_path / "root").mkdir()

    entry = write_entry(
        folder, record, tmp_path / "root", performance=PERFORMANCE, validation=certify(folder)
    )

    assert entry == tmp_path / "root/mine"
    assert files_in(entry) == {
        *("metadata.json", "config.pbtxt"),
        *("4/model.onnx", "4/metadata.json", "4/config.pbtxt", "4/validation.json"),
    }
    for name in ("metadata.json", "config.pbtxt"):
        assert (entry / name).read_bytes() == (entry / "4" / name).read_bytes()
    assert (entry / "4/model.onnx").read_bytes() == (folder.model_folder / "model.onnx").read_bytes()
    assert (entry / "4/validation.json").read_bytes() == folder.validation_file.read_bytes()


def test_an_entry_for_a_trial_has_no_certificate_yet(tmp_path: Path) -> None:
    folder, record = make_job(tmp_path / "job")
    (tmp_path / "root").mkdir()

    entry = write_entry(folder, record, tmp_path / "root")

    assert not (entry / "1/validation.json").exists()
    assert "validation" not in json.loads((entry / "metadata.json").read_bytes())


@pytest.mark.parametrize("file", ["model/model.onnx", "validation.json"])
def test_files_that_have_changed_since_do_not_go_into_an_entry(tmp_path: Path, file: str) -> None:
    folder, record = make_job(tmp_path / "job")
    validation = certify(folder)
    content = bytearray((folder.path / file).read_bytes())
    content[0] ^= 1
    folder.write(file, bytes(content))

    with pytest.raises(
        ExportError, match=f"{Path(file).name} is not the file that an earlier stage has left"
    ):
        write_entry(folder, record, tmp_path, validation=validation)


@pytest.mark.parametrize(
    ("file", "forged", "says"),
    [
        ("checkpoint.json", {"sha256": "0" * 64}, "checkpoint's SHA-256: 0000"),
        ("checkpoint.json", {"size_bytes": 1}, r"checkpoint's size in bytes: 1\. It is 7"),
        ("checkpoint.json", {"framework": "timm"}, r"checkpoint's framework: timm\. It is ultralytics"),
        ("model/model.json", {"export_format": "tflite"}, r"model's format: tflite\. It is onnx"),
        ("model/model.json", {"size_bytes": 1}, "model's size in bytes: 1"),
        ("model/model.json", {"precision": "int8"}, r"model's precision: int8\. It is fp32"),
        ("model/model.json", {"opset_version": 3}, r"model's opset: 3\. It is 17"),
        ("model/model.json", {"max_batch_size": 10**9}, r"model's largest batch: 1000000000\. It is 16"),
        ("model/model.json", {"preprocessing_embedded": False}, "model's own preprocessing: False"),
        ("model/model.json", {"nms_embedded": True}, "model's own suppression: True"),
        ("model/model.json", {"head": "yolo_end_to_end"}, r"model's head end-to-end: True\. It is False"),
        ("model/model.json", {"inputs": []}, r"model's inputs' shapes: \[\]\. It is \[\(-1, 32, 32, 3\)\]"),
        ("model/model.json", {"file": "../model.onnx"}, "not what an earlier stage wrote"),
        ("checkpoint.json", {"class_names": ["circle", "\x1b[2J"]}, "not what an earlier stage wrote"),
        ("checkpoint.json", {"class_names": ["circle", "circle"]}, "not what an earlier stage wrote"),
        ("checkpoint.json", {"architecture": "two\nlines"}, "not what an earlier stage wrote"),
    ],
)
def test_what_the_isolated_process_says_is_held_against_what_is_known(
    tmp_path: Path, file: str, forged: dict[str, object], says: str
) -> None:
    folder, record = make_job(tmp_path / "job", export_config={"head": "raw"})
    facts = json.loads((folder.path / file).read_bytes())
    folder.write(file, json.dumps(facts | forged).encode())

    with pytest.raises(ExportError, match=says):
        write_entry(folder, record, tmp_path)
    assert not (tmp_path / "shapes").exists()


@pytest.mark.parametrize("imgsz", [None, 64])
def test_the_input_is_of_the_size_that_was_asked_for(tmp_path: Path, imgsz: int | None) -> None:
    folder, record = make_job(tmp_path / "job", export_config={"imgsz": imgsz})
    model = folder.model()
    resize = model.resize.model_copy(update={"size": (96, 96)})
    folder.write("model/model.json", model.model_copy(update={"resize": resize}).to_json())

    with pytest.raises(ExportError, match=r"input size: \(96, 96\)\. It is \((32, 32|64, 64)\)"):
        write_entry(folder, record, tmp_path)


def test_the_entry_says_what_was_certified_and_measured(tmp_path: Path) -> None:
    folder, record = make_job(tmp_path / "job")
    certificate = certificate_of(folder, record)

    build_entry(folder, record, say_nothing)

    metadata = json.loads((folder.entry_root / "shapes/metadata.json").read_bytes())
    assert metadata["performance"] == PERFORMANCE
    assert metadata["validation"] == summary(certificate)
    assert (
        metadata["validation"]["report_sha256"]
        == hashlib.sha256(folder.validation_file.read_bytes()).hexdigest()
    )


def test_without_validation_there_is_nothing_to_say(tmp_path: Path) -> None:
    folder, record = make_job(tmp_path / "job", validation_config={"enabled": False})

    build_entry(folder, record, say_nothing)

    assert not {"performance", "validation"} & set(
        json.loads((folder.entry_root / "shapes/metadata.json").read_bytes())
    )


def test_an_entry_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    folder, record = make_job(tmp_path / "job")
    certificate_of(folder, record)
    few = folder.checkpoint().model_copy(update={"class_names": ("one",)})
    folder.write("checkpoint.json", few.to_json())

    with pytest.raises(BadInput, match="names 1 classes"):
        build_entry(folder, record, say_nothing)
    assert not folder.entry_root.exists()


def test_the_package_holds_what_the_specification_names(tmp_path: Path) -> None:
    folder, record = make_job(tmp_path / "job", version=2)
    certificate_of(folder, record)
    build_entry(folder, record, say_nothing)

    build_package(folder, record, say_nothing)

    package = folder.package
    assert files_in(package) == {
        *("model.onnx", "metadata.json", "labels.txt", "README.md", "validation.json", "SHA256SUMS"),
        *(f"runtimes/python/{name}" for name in WRAPPER),
    }
    assert (package / "labels.txt").read_text() == "circle\nsquare\ntriangle\nstar\n"
    assert (package / "metadata.json").read_bytes() == (
        folder.entry_root / "shapes/2/metadata.json"
    ).read_bytes()
    for name in WRAPPER:
        source = Path(runtimes.__path__[0], "python", name)
        assert (package / "runtimes/python" / name).read_bytes() == source.read_bytes()
    report = verify_package(folder.path / "shapes-2.zip")
    assert (report.certified, report.files) == (True, 9)


def test_the_same_job_gives_the_same_bytes(tmp_path: Path) -> None:
    zips = []
    for name in ("one", "another"):
        folder, record = make_job(tmp_path / name)
        zips.append(
            write_package(folder, record, performance=PERFORMANCE, validation=certify(folder)).read_bytes()
        )
    again = write_package(folder, record, performance=PERFORMANCE, validation=certify(folder)).read_bytes()

    assert zips == [again, again]


def test_the_readme_says_what_the_contract_says(tmp_path: Path) -> None:
    folder, record = make_job(tmp_path / "job", name="mine", version=12)
    certificate_of(folder, record)
    build_entry(folder, record, say_nothing)
    build_package(folder, record, say_nothing)

    readme = (folder.package / "README.md").read_text()

    model = folder.model()
    for said in (
        *("# mine, version 12", "A model for detection, exported from an Ultralytics checkpoint to ONNX"),
        *(model.sha256, folder.checkpoint().sha256, f"{model.size_bytes:,} bytes"),
        "| input `images` | uint8 [-1, 32, 32, 3] | NHWC | Pictures. |",
        "| output `predictions` | float32 [-1, 8, 2] | NCA | What it found. |",
        "resized to fit into 32 x 32 pixels, centred, and the border filled with 114. The graph normalises",
        *("0 `circle`, 1 `square`, 2 `triangle`, 3 `star`.", "runtimes/python/example.py picture.jpg"),
        "| this file, by the wrapper in `runtimes/python` | 0.9991 | 0.0002 | 0 |  |",
        "| visiongate, over HTTP | 0.9991 | 0.0002 | 0 |  |",
        *("2 pictures, 9 predictions", "14.1 ms", "70.5 pictures a second", "AGPL-3.0"),
    ):
        assert said in readme
    assert not any(len(line) != len(line.rstrip()) for line in readme.splitlines())


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("classification", "the shorter side has 32 pixels, and cut to the middle"),
        ("normalised_outside", "The caller normalises them, too."),
        ("segmentation", "from model_wrapper import ModelWrapper, decode_rgb"),
    ],
)
def test_the_readme_of_other_kinds(tmp_path: Path, kind: str, says: str) -> None:
    folder, record = make_job(tmp_path / "job", kind)
    write_package(folder, record)

    readme = (folder.package / "README.md").read_text()

    assert says in readme
    assert "None: this export was never compared with its checkpoint." in readme


def test_many_classes_and_wild_names_stay_in_their_lines(tmp_path: Path) -> None:
    folder, record = make_job(tmp_path / "job", "end_to_end")
    names = ("two words", "`code`", "a|b", *(f"class {index}" for index in range(30)))
    folder.write("checkpoint.json", folder.checkpoint().model_copy(update={"class_names": names}).to_json())

    verify_package(write_package(folder, record))

    assert (folder.package / "labels.txt").read_text().split("\n")[:2] == ["two words", "`code`"]
    assert (folder.package / "labels.txt").read_text().count("\n") == len(names)
    assert "33; `labels.txt` names them" in (folder.package / "README.md").read_text()


def test_a_package_without_its_entry_is_not_made(tmp_path: Path) -> None:
    folder, record = make_job(tmp_path / "job")
    write_package(folder, record)
    before = folder.zip_file(record).read_bytes()
    shutil.rmtree(folder.entry_root)

    with pytest.raises(FileNotFoundError):
        build_package(folder, record, say_nothing)
    assert folder.zip_file(record).read_bytes() == before
    assert folder.package.is_dir()
