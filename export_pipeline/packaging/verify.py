"""Is a package as it was made? It is read once, from its first byte to its last; nothing is unpacked or run.

No signature is checked: who made the package, and whether all of it was made anew by somebody else, cannot be
told from it.
"""

from __future__ import annotations

import json
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export_pipeline.errors import BadInput, ExportError, ValidationFailed, reading
from export_pipeline.metadata import require_valid
from export_pipeline.packaging.archive import Content, NotOurZip, read_zip
from export_pipeline.packaging.layout import (
    CERTIFICATE,
    CHECKSUMS,
    CONTRACT,
    LABELS,
    checksums,
    files_of,
    labels,
)

_READ_AS_TEXT = frozenset({CERTIFICATE, CHECKSUMS, CONTRACT, LABELS})
_ZIP_SIGNATURE = b"PK"

Contents = dict[str, Content]
"""By path in the package."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a package that is in order says of itself. certified: whether it holds a certificate."""

    model_name: str
    version: str
    task_type: str
    export_format: str
    classes: int
    model_sha256: str
    checkpoint_sha256: str
    files: int
    size_bytes: int
    certified: bool


def verify_package(path: Path) -> Report:
    """Raises BadInput for what is no package, ValidationFailed for one that is not as it was made."""
    contents = _read(path)
    missing = {CONTRACT, CHECKSUMS} - set(contents)
    if missing:
        raise BadInput(f"{path} is no package: it has no {' and no '.join(sorted(missing))}.")
    _check_sums(contents)
    metadata = _json(contents, CONTRACT)
    try:
        require_valid(metadata)
    except ExportError as exc:
        raise ValidationFailed(str(exc)) from exc
    _check_files(contents, metadata)
    _check_model(contents, metadata)
    _check_certificate(contents, metadata)
    info = metadata["model_info"]
    return Report(
        model_name=info["model_name"],
        version=info["version"],
        task_type=info["task_type"],
        export_format=info["export_format"],
        classes=len(metadata["classes"]),
        model_sha256=info["model_file"]["sha256"],
        checkpoint_sha256=info["source_checkpoint_sha256"],
        files=len(contents),
        size_bytes=path.stat().st_size,
        certified="validation" in metadata,
    )


def _read(path: Path) -> Contents:
    with reading(path, "the package"):
        if not stat.S_ISREG(path.stat().st_mode):
            raise BadInput(f"The package {path} is not a file.")
        with path.open("rb") as file:
            is_zip = file.read(len(_ZIP_SIGNATURE)) == _ZIP_SIGNATURE
            file.seek(0)
            try:
                return read_zip(file, _READ_AS_TEXT)
            except NotOurZip as exc:
                kind = ValidationFailed if is_zip else BadInput
                raise kind(f"{path} is not a package as it was made: {exc}.") from exc


def _check_sums(contents: Contents) -> None:
    found = checksums({name: content.sha256 for name, content in contents.items()})
    stated = _text(contents, CHECKSUMS)
    if stated == found:
        return
    differing = sorted(set(stated.splitlines()) ^ set(found.splitlines()), key=lambda line: line[64:])
    name = differing[0][66:] if differing else "the order of its lines"
    raise ValidationFailed(f"{CHECKSUMS} does not fit what the package holds: {name!r}.")


def _check_files(contents: Contents, metadata: dict[str, Any]) -> None:
    expected = files_of(metadata)
    if missing := sorted(expected - set(contents)):
        raise ValidationFailed(f"The package lacks {', '.join(map(repr, missing))}.")
    if strange := sorted(set(contents) - expected):
        raise ValidationFailed(
            f"The package holds what belongs to no package: {', '.join(map(repr, strange))}."
        )


def _check_model(contents: Contents, metadata: dict[str, Any]) -> None:
    stated = metadata["model_info"]["model_file"]
    found = contents[stated["name"]]
    if (found.sha256, found.size_bytes) != (stated["sha256"], stated["size_bytes"]):
        raise ValidationFailed(f"{stated['name']} is not the file that {CONTRACT} was written for.")
    if _text(contents, LABELS) != labels(metadata):
        raise ValidationFailed(f"{LABELS} does not name the classes of {CONTRACT}.")


def _check_certificate(contents: Contents, metadata: dict[str, Any]) -> None:
    if "validation" not in metadata:
        return
    if contents[CERTIFICATE].sha256 != metadata["validation"]["report_sha256"]:
        raise ValidationFailed(f"{CERTIFICATE} is not the report that {CONTRACT} sums up.")
    certificate = _json(contents, CERTIFICATE)
    info = metadata["model_info"]
    try:
        passed, subject = certificate["passed"], certificate["subject"]
        about = (subject["model_sha256"], subject["checkpoint_sha256"])
    except (KeyError, TypeError) as exc:
        raise ValidationFailed(f"{CERTIFICATE} is not a certificate: {exc!r}.") from exc
    if passed is not True:
        raise ValidationFailed(f"{CERTIFICATE} says that the model has not passed.")
    if about != (info["model_file"]["sha256"], info["source_checkpoint_sha256"]):
        raise ValidationFailed(f"{CERTIFICATE} is about another model, or another checkpoint.")


def _json(contents: Contents, name: str) -> Any:
    try:
        return json.loads(_text(contents, name))
    except (ValueError, RecursionError) as exc:
        raise ValidationFailed(f"{name} is not JSON: {exc}.") from exc


def _text(contents: Contents, name: str) -> str:
    try:
        return (contents[name].data or b"").decode()
    except UnicodeDecodeError as exc:
        raise ValidationFailed(f"{name} is not UTF-8.") from exc
