"""Whatever can be known of a job's inputs and outputs, looked at before its work begins."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from PIL import Image

from export_pipeline.datasets import PICTURE_SUFFIXES
from export_pipeline.errors import BadInput, reading
from export_pipeline.request import ExportRequest
from export_pipeline.storage import absolute_address, open_address

MAX_PICTURES = 200
MAX_PICTURE_BYTES = 64 * 1024**2
"""Of one golden picture's file."""


def from_any_folder(request: ExportRequest) -> ExportRequest:
    """The same request with absolute paths: it may be resumed elsewhere, and the isolated process is."""
    validation = request.validation_config
    return request.model_copy(
        update={
            "checkpoint": absolute_address(request.checkpoint),
            "publish": _absolute(request.publish),
            "validation_config": validation.model_copy(
                update={
                    "pictures": _absolute(validation.pictures),
                    "dataset": _absolute(validation.dataset),
                }
            ),
        }
    )


def check_inputs(request: ExportRequest) -> None:
    """What the job reads. Raises BadInput, or ExportError where the checkpoint's server does not answer."""
    with open_address(request.checkpoint):
        pass
    validation = request.validation_config
    if validation.enabled and validation.pictures is not None:
        require_decodable(validation.pictures)
    if validation.enabled and validation.dataset is not None:
        _require_there(validation.dataset, "the data set")


def check_outputs(request: ExportRequest, out: Path) -> None:
    """The folders that the job writes. Raises BadInput."""
    if request.publish is not None:
        _require_repository(request.publish, out)
    _require_writable(out)


def picture_files(folder: Path) -> list[Path]:
    """By their suffix, in order. Raises BadInput where there are none, too many or too large ones."""
    with reading(folder, "the folder of golden pictures"):
        files = sorted(
            path
            for path in folder.iterdir()
            if path.suffix.lower() in PICTURE_SUFFIXES and path.name[0] != "."
        )
    if not files:
        raise BadInput(f"{folder} holds no picture: {', '.join(sorted(PICTURE_SUFFIXES))} are read.")
    if len(files) > MAX_PICTURES:
        raise BadInput(f"{folder} holds {len(files)} pictures; {MAX_PICTURES} golden ones are the most.")
    for file in files:
        with reading(file, "the golden picture"):
            if file.stat().st_size > MAX_PICTURE_BYTES:
                raise BadInput(
                    f"The golden picture {file} is larger than {MAX_PICTURE_BYTES // 1024**2} MiB."
                )
    return files


def require_decodable(folder: Path) -> None:
    """Decode each golden picture to its end. Raises BadInput naming the one that is broken."""
    for path in picture_files(folder):
        with reading(path, "the golden picture"), warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            try:
                with Image.open(path) as picture:
                    picture.load()
            except (
                SyntaxError,
                ValueError,
                Image.DecompressionBombWarning,
                Image.DecompressionBombError,
            ) as exc:
                raise BadInput(f"The golden picture {path} cannot be decoded.") from exc
            except OSError as exc:
                if exc.errno is not None:  # the file system's; Pillow's own carry none
                    raise
                raise BadInput(f"The golden picture {path} cannot be decoded.") from exc


def _require_repository(publish: Path, out: Path) -> None:
    _require_there(publish, "the model repository")
    if not publish.is_dir():
        raise BadInput(f"The model repository {publish} is not a folder.")
    if not os.access(publish, os.W_OK | os.X_OK):
        raise BadInput(f"The model repository {publish} may not be written: permission denied.")
    if out.resolve().is_relative_to(publish.resolve()):
        raise BadInput(f"{out} lies in the model repository, whose readers would take it for a model.")


def _require_writable(out: Path) -> None:
    existing = next(path for path in (out, *out.parents) if os.path.lexists(path))
    if not existing.is_dir():
        raise BadInput(f"{existing} is not a folder.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise BadInput(f"{existing} may not be written: permission denied.")


def _require_there(path: Path, what: str) -> None:
    with reading(path, what):
        path.stat()


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else path.absolute()
