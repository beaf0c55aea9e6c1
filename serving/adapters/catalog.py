"""The models that can be served: folders of Triton's model repository that carry a `metadata.json`."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from serving.adapters.model_config import read_max_batch_size
from serving.domain.contract import ModelContract
from serving.domain.metadata import ModelFile
from serving.errors import OperatorError
from serving.ports import CatalogModel, CatalogScan

METADATA = "metadata.json"
CONFIG = "config.pbtxt"
MAX_METADATA_BYTES = 16 << 20
"""Some hundred thousand classes; a file that is larger is not one of ours."""

LOOKS = 3
"""At one entry, while another takes its place each time."""

Fingerprint = tuple[tuple[int, ...] | None, ...]
"""Inode, times of change in nanoseconds and size, of each file that was looked at."""


@dataclass(frozen=True, slots=True)
class _Looked:
    """What was found in a folder, and of which files; `refused` where it cannot be served."""

    fingerprint: Fingerprint
    model_path: str | None
    found: CatalogModel | str


class FolderCatalog:
    """Folders that begin with a dot are somebody's drafts. For one thread at a time."""

    def __init__(self, model_repository: Path) -> None:
        self._model_repository = model_repository
        self._known: dict[str, _Looked] = {}

    def scan(self) -> CatalogScan:
        """Reads again only what has changed; a model's file is hashed once.

        Raises OperatorError where the repository cannot be listed, so that nobody takes its models for gone.
        """
        self._known = {name: looked for name in self._folders() if (looked := self._look(name)) is not None}
        found = {name: looked.found for name, looked in self._known.items()}
        return CatalogScan(
            models={name: each for name, each in found.items() if isinstance(each, CatalogModel)},
            refused={name: each for name, each in found.items() if isinstance(each, str)},
        )

    def _folders(self) -> list[str]:
        try:
            folders = [path.name for path in self._model_repository.iterdir()]
        except OSError as exc:
            if isinstance(exc, FileNotFoundError) and not self._known:
                return []  # not there yet
            raise OperatorError(f"The model repository cannot be listed: {exc.strerror}.") from exc
        return sorted(name for name in folders if not name.startswith("."))

    def _look(self, name: str) -> _Looked | None:
        """None for a folder without a contract: it is no business of the gateway's."""
        path, known = self._model_repository / name, self._known.get(name)
        for _ in range(LOOKS):
            try:
                # Held open: all that is read is of one entry, even if another takes its place meanwhile.
                folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except (FileNotFoundError, NotADirectoryError):
                return None
            except OSError:
                return known  # it is there, and will be read when there is a descriptor, or its disk is back
            try:
                looked = _look_at(folder, name, known)
                if _is_at(folder, path):
                    return looked
            finally:
                os.close(folder)
        return known


def _look_at(folder: int, name: str, known: _Looked | None) -> _Looked | None:
    if _fingerprint_of(folder, METADATA) is None:
        return None
    if known is not None and known.fingerprint == _fingerprint(folder, known.model_path):
        return known
    return _look_into(folder, name)


def _is_at(folder: int, path: Path) -> bool:
    """Whether it lies there still: what has lost its place may have lost its files, too."""
    with suppress(OSError):
        return os.path.samestat(os.fstat(folder), path.stat())
    return False


def _look_into(folder: int, name: str) -> _Looked:
    before = _fingerprint(folder, None)
    model_path: str | None = None
    found: CatalogModel | str
    try:
        contract = _read_contract(folder, name)
        if (file := contract.model_info.model_file) is not None:
            model_path = f"{contract.model_info.version}/{file.name}"
            before = (*before, _fingerprint_of(folder, model_path))
            _require_complete(folder, model_path, file)
        config = _read(folder, CONFIG)
        found = CatalogModel(
            contract, read_max_batch_size(config, contract), hashlib.sha256(config).hexdigest()
        )
    except OperatorError as error:
        found = error.detail
    return _Looked(before, model_path, found)


def _fingerprint(folder: int, model_path: str | None) -> Fingerprint:
    files = (METADATA, CONFIG) if model_path is None else (METADATA, CONFIG, model_path)
    return tuple(_fingerprint_of(folder, file) for file in files)


def _fingerprint_of(folder: int, file: str) -> tuple[int, ...] | None:
    with suppress(OSError):
        status = os.stat(file, dir_fd=folder)
        return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size
    return None


def _read_contract(folder: int, name: str) -> ModelContract:
    contract = ModelContract.parse(_read(folder, METADATA))
    if contract.name != name:
        raise OperatorError(f"model_info.model_name is {contract.name!r}, the folder {name!r}")
    return contract


def _require_complete(folder: int, model_path: str, file: ModelFile) -> None:
    """The file has to be the one that the contract is about: half of it, or another, is not served."""
    fingerprint = _fingerprint_of(folder, model_path)
    if fingerprint is None:
        raise OperatorError("its model file is not there")
    *_, size_bytes = fingerprint
    if size_bytes != file.size_bytes:
        raise OperatorError(f"its model file has {size_bytes} bytes, not {file.size_bytes}")
    with _open(folder, model_path) as content:
        if hashlib.file_digest(content, "sha256").hexdigest() != file.sha256:
            raise OperatorError("its model file is not the one that metadata.json names")


def _read(folder: int, file: str) -> bytes:
    with _open(folder, file) as content:
        read = content.read(MAX_METADATA_BYTES + 1)
    if len(read) > MAX_METADATA_BYTES:
        raise OperatorError(f"{file} is larger than {MAX_METADATA_BYTES} bytes")
    return read


@contextmanager
def _open(folder: int, file: str) -> Iterator[BufferedReader]:
    """Raises OperatorError, without a path in it, where it cannot be read."""
    try:
        # A pipe has nobody at its other end: without O_NONBLOCK, opening it would wait for ever.
        number = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder)
        if not stat.S_ISREG(os.fstat(number).st_mode):
            os.close(number)
            raise OperatorError(f"{file} cannot be read: it is not a file")
        with open(number, "rb") as content:  # noqa: PTH123 - a number
            yield content
    except OSError as exc:
        raise OperatorError(f"{file} cannot be read: {exc.strerror}") from exc
