"""`verify`: every way of tampering with a package that a person or a disk can think of."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export_pipeline.errors import BadInput, ValidationFailed
from export_pipeline.packaging.archive import write_zip
from export_pipeline.packaging.layout import checksums
from export_pipeline.packaging.verify import verify_package
from tests.support.export_jobs import PERFORMANCE, certify, make_job
from tests.support.packages import write_package

Tamper = Callable[[Path], object]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The folder of a package that is in order."""
    folder, record = make_job(tmp_path / "job", version=3)
    write_package(folder, record, performance=PERFORMANCE, validation=certify(folder))
    return folder.package


def zipped(package: Path, *, sums: bool = True) -> Path:
    """The package's zip, made as the pipeline makes it; `sums`: after the sums were made to fit again."""
    if sums:
        files = {path.relative_to(package).as_posix(): path for path in package.rglob("*") if path.is_file()}
        hashes = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
        (package / "SHA256SUMS").write_text(checksums(hashes))
    write_zip(package, package.with_suffix(".zip"))
    return package.with_suffix(".zip")


def change(name: str, path: str, value: object) -> Tamper:
    """Set one field of a JSON file."""

    def tamper(package: Path) -> None:
        content: Any = json.loads((package / name).read_bytes())
        *parents, last = path.split(".")
        target = content
        for part in parents:
            target = target[part]
        target[last] = value
        (package / name).write_text(json.dumps(content))

    return tamper


def certificate(path: str, value: object) -> Tamper:
    """Change the certificate, and let the contract name it as it is now."""

    def tamper(package: Path) -> None:
        change("validation.json", path, value)(package)
        restate(package)

    return tamper


def another_certificate(text: str) -> Tamper:
    def tamper(package: Path) -> None:
        (package / "validation.json").write_text(text)
        restate(package)

    return tamper


def restate(package: Path) -> None:
    sha256 = hashlib.sha256((package / "validation.json").read_bytes()).hexdigest()
    change("metadata.json", "validation.report_sha256", sha256)(package)


def test_a_package_in_order(package: Path, tmp_path: Path) -> None:
    path = zipped(package, sums=False)

    report = verify_package(path)

    assert (report.model_name, report.version, report.task_type) == ("shapes", "3", "detection")
    assert (report.export_format, report.classes, report.certified) == ("onnx", 4, True)
    assert report.model_sha256 == hashlib.sha256((package / "model.onnx").read_bytes()).hexdigest()
    assert report.checkpoint_sha256 == hashlib.sha256(b"best.pt").hexdigest()
    assert (report.files, report.size_bytes) == (9, path.stat().st_size)


def test_one_without_a_certificate_says_so(tmp_path: Path) -> None:
    folder, record = make_job(tmp_path / "job", "segmentation", validation_config={"enabled": False})
    write_package(folder, record)

    report = verify_package(folder.zip_file(record))

    assert not report.certified
    assert report.files == 8


@pytest.mark.parametrize(
    "tamper",
    [
        lambda package: (package / "model.onnx").write_bytes(b"other weights"),
        lambda package: (package / "README.md").unlink(),
        lambda package: (package / "extra").write_text("hidden"),
        lambda package: (package / "labels.txt").rename(package / "Labels.txt"),
        lambda package: (package / "SHA256SUMS").write_text(""),
        lambda package: (package / "SHA256SUMS").write_bytes(b"\xff"),
        lambda package: (package / "SHA256SUMS").write_text(
            "".join(reversed((package / "SHA256SUMS").read_text().splitlines(keepends=True)))
        ),
    ],
)
def test_sums_that_do_not_fit(package: Path, tamper: Tamper) -> None:
    tamper(package)

    with pytest.raises(ValidationFailed, match="SHA256SUMS") as refusal:
        verify_package(zipped(package, sums=False))
    assert refusal.value.exit_code == 4


@pytest.mark.parametrize(
    ("tamper", "says"),
    [
        (lambda package: (package / "extra").write_text("hidden"), "belongs to no package: 'extra'"),
        (lambda package: (package / "\x1b[2J").touch(), r"belongs to no package: '\\x1b\[2J'"),
        (lambda package: (package / "runtimes/python/setup.py").write_text(""), "belongs to no package"),
        (lambda package: (package / "README.md").unlink(), "lacks 'README.md'"),
        (
            lambda package: (package / "runtimes/python/example.py").unlink(),
            "lacks 'runtimes/python/example.py'",
        ),
        (lambda package: (package / "validation.json").unlink(), "lacks 'validation.json'"),
        (lambda package: (package / "model.onnx").rename(package / "weights.onnx"), "lacks 'model.onnx'"),
        (lambda package: (package / "model.onnx").write_bytes(b"other"), "model.onnx is not the file"),
        (change("metadata.json", "model_info.model_file.size_bytes", 1), "model.onnx is not the file"),
        (change("metadata.json", "model_info.model_file.sha256", "0" * 64), "model.onnx is not the file"),
        (
            change("metadata.json", "model_info.model_file.name", "labels.txt"),
            "belongs to no package: 'model.onnx'",
        ),
        (lambda package: (package / "labels.txt").write_text("cat\n"), "labels.txt does not name"),
        (lambda package: (package / "labels.txt").write_bytes(b"\xff"), "labels.txt is not UTF-8"),
        (change("metadata.json", "classes", [{"id": 0, "name": "cat"}]), "labels.txt does not name"),
        (lambda package: (package / "metadata.json").write_text("{"), "metadata.json is not JSON"),
        (lambda package: (package / "metadata.json").write_text("[" * 10**5), "metadata.json is not JSON"),
        (lambda package: (package / "metadata.json").write_text("[]"), "metadata.json, top level"),
        (change("metadata.json", "surprise", 1), "metadata.json, top level"),
        (change("metadata.json", "schema_version", "1.0"), "metadata.json, schema_version"),
        (change("metadata.json", "model_info.version", "0"), "metadata.json, model_info.version"),
        (change("metadata.json", "validation.passed", False), "metadata.json, validation.passed"),
        (change("metadata.json", "validation.report_sha256", "0" * 64), "not the report"),
        (change("validation.json", "passed", False), "not the report"),
        (certificate("passed", False), "has not passed"),
        (certificate("passed", 1), "has not passed"),
        (certificate("subject.model_sha256", "0" * 64), "about another model"),
        (certificate("subject.checkpoint_sha256", "0" * 64), "another checkpoint"),
        (certificate("subject", {}), "is not a certificate"),
        (certificate("subject", None), "is not a certificate"),
        (another_certificate("[]"), "is not a certificate"),
        (another_certificate("{"), "validation.json is not JSON"),
    ],
)
def test_what_does_not_fit_together_although_its_sums_do(package: Path, tamper: Tamper, says: str) -> None:
    tamper(package)

    with pytest.raises(ValidationFailed, match=says):
        verify_package(zipped(package))


def test_another_zip_of_the_same_files_is_not_as_it_was_made(package: Path) -> None:
    path = zipped(package, sums=False)
    verify_package(path)
    content = path.read_bytes()

    for tampered in (content + b"\0", content[:-1], content.replace(b"circle", b"cirkle", 1)):
        path.write_bytes(tampered)
        with pytest.raises(ValidationFailed, match="not a package as it was made"):
            verify_package(path)


@pytest.mark.parametrize("content", [b"", b"P", b"no zip", b"\x7fELF"])
def test_what_is_no_zip_is_no_package(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "package.zip").write_bytes(content)

    with pytest.raises(BadInput, match="not a zip") as refusal:
        verify_package(tmp_path / "package.zip")
    assert refusal.value.exit_code == 2


@pytest.mark.parametrize("missing", ["metadata.json", "SHA256SUMS"])
def test_a_zip_of_something_else_is_no_package(package: Path, missing: str) -> None:
    (package / missing).unlink()

    with pytest.raises(BadInput, match=f"is no package: it has no {missing}"):
        verify_package(zipped(package, sums=False))


def test_what_is_not_even_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(BadInput, match="does not exist"):
        verify_package(tmp_path / "gone.zip")
    with pytest.raises(BadInput, match="is not a file"):
        verify_package(tmp_path)
    with pytest.raises(BadInput, match="is not a file"):
        verify_package(tmp_path / "pipe")
