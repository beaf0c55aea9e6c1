"""The stage that makes the Triton entry and the package of what the stages before it have left."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from export_pipeline import runtimes
from export_pipeline.believing import require_true
from export_pipeline.certificate.measurements import load_performance
from export_pipeline.certificate.report import load_certificate, summary
from export_pipeline.errors import ExportError, writing
from export_pipeline.job import JobFolder, JobRecord, sha256_of
from export_pipeline.metadata import build_metadata, write_metadata
from export_pipeline.packaging.archive import write_zip
from export_pipeline.packaging.layout import CHECKSUMS, LABELS, README, WRAPPERS, checksums, labels
from export_pipeline.packaging.readme import package_readme
from export_pipeline.progress import Say
from export_pipeline.repository.triton_config import config_of


def write_entry(
    folder: JobFolder,
    record: JobRecord,
    target_root: Path,
    *,
    performance: dict[str, Any] | None = None,
    validation: dict[str, Any] | None = None,
) -> Path:
    """Write `<target_root>/<name>/…` as Triton wants it, and return it. `target_root` must be there.

    The parts are those of metadata.json; `validation` asks for the job's `validation.json`.
    Raises ExportError where the isolated process has said what is not so.
    """
    require_true(folder, record)
    model = folder.model()
    metadata = build_metadata(folder, record, performance=performance, validation=validation)
    config = config_of(record.request.name, record.version, model).to_pbtxt()
    entry = target_root / record.request.name
    version = entry / str(record.version)
    with writing(entry):
        version.mkdir(parents=True)
        shutil.copyfile(folder.model_folder / model.file, version / model.file)
        _require_hash(version / model.file, model.sha256)
        if validation is not None:
            shutil.copyfile(folder.validation_file, version / folder.validation_file.name)
            _require_hash(version / folder.validation_file.name, validation["report_sha256"])
        for place in (version, entry):
            write_metadata(place / "metadata.json", metadata)
            (place / "config.pbtxt").write_text(config)
    return entry


def build_entry(folder: JobFolder, record: JobRecord, say: Say) -> None:
    """Leaves `entry/`."""
    say("writing the Triton entry")
    performance, validation = None, None
    if record.request.validation_config.enabled:
        performance = load_performance(folder)
        validation = summary(load_certificate(folder))
    with folder.drafting(folder.entry_root) as draft:
        write_entry(folder, record, draft, performance=performance, validation=validation)


def build_package(folder: JobFolder, record: JobRecord, say: Say) -> None:
    """Leaves `package/` and its zip."""
    say("packaging")
    version = folder.entry_root / record.request.name / str(record.version)
    metadata = json.loads((version / "metadata.json").read_bytes())
    with folder.drafting(folder.package) as draft:
        for path in sorted(version.iterdir()):
            if path.name != "config.pbtxt":
                shutil.copyfile(path, draft / path.name)
        (draft / LABELS).write_text(labels(metadata), encoding="utf-8")
        (draft / README).write_text(package_readme(metadata), encoding="utf-8")
        for language in metadata["runtime_wrappers"]:
            _copy_wrapper(language, draft)
        (draft / CHECKSUMS).write_text(checksums(_sha256_by_path(draft)), encoding="utf-8")
    say("zipping", 0.5)
    write_zip(folder.package, folder.zip_file(record))


def _copy_wrapper(language: str, package: Path) -> None:
    source, target = Path(runtimes.__path__[0], language), package / "runtimes" / language
    target.mkdir(parents=True)
    for name in WRAPPERS[language]:
        shutil.copyfile(source / name, target / name)


def _sha256_by_path(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}


def _require_hash(path: Path, sha256: str) -> None:
    if sha256_of(path) != sha256:
        raise ExportError(f"{path.name} is not the file that an earlier stage has left.")
