"""The models that can be served: folders of Triton's model repository that carry a `metadata.json`."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from serving.adapters.model_config import read_max_batch_size
from serving.domain.contract import ModelContract
from serving.errors import OperatorError
from serving.ports import CatalogModel, CatalogScan

logger = logging.getLogger(__name__)

METADATA = "metadata.json"
CONFIG = "config.pbtxt"
MAX_METADATA_BYTES = 16 << 20
"""Some hundred thousand classes; a file that is larger is not one of ours."""

LOOKS = 3
"""At one entry, while another takes its place each time."""

Identity = tuple[int, ...]
"""Of a file: inode, time of change in nanoseconds, size; not the time at which it was linked or unlinked."""

Fingerprint = tuple[Identity | None, ...]
"""Of each file that was looked at; in that of a small one, which may be edited in place, also its ctime."""


@dataclass(frozen=True, slots=True)
class _Looked:
    """What was found in a folder, and of which files; a sentence where it cannot be served.

    is_final: until its files change; else there is more to find out at the next look.
    """

    fingerprint: Fingerprint
    model_path: str | None
    found: CatalogModel | str
    is_final: bool = True


class FolderCatalog:
    """Folders that begin with a dot are somebody's drafts. `scan` is for one thread at a time."""

    def __init__(self, model_repository: Path) -> None:
        self._model_repository = model_repository
        self._known: dict[str, _Looked] = {}
        self._verified: dict[str, tuple[Identity, str]] = {}

    def scan(self) -> CatalogScan:
        """Reads again only what has changed, and no model's file.

        Raises OperatorError where the repository cannot be listed, so that nobody takes its models for gone.
        """
        self._known = {name: looked for name in self._folders() if (looked := self._look(name)) is not None}
        for name in self._verified.keys() - self._known.keys():
            del self._verified[name]
        found = {name: looked.found for name, looked in self._known.items()}
        return CatalogScan(
            models={name: each for name, each in found.items() if isinstance(each, CatalogModel)},
            refused={name: each for name, each in found.items() if isinstance(each, str)},
        )

    def verify(self, model: CatalogModel) -> None:
        """A file is hashed once."""
        info, name = model.contract.model_info, model.contract.name
        if info.model_file is None:
            return
        known = self._verified.get(name)
        if known is None or known[0] != model.model_file:
            path = f"{info.version}/{info.model_file.name}"
            known = self._verified[name] = model.model_file, self._hash(name, path, model.model_file)
        if known[1] != info.model_file.sha256:
            raise OperatorError("its model file is not the one that metadata.json names")

    def verified(self) -> CatalogScan:
        """A scan for somebody who starts a Triton: with every model's file read to its end."""
        scan = self.scan()
        models, refused = dict(scan.models), dict(scan.refused)
        for name, model in scan.models.items():
            try:
                self.verify(model)
            except OperatorError as error:
                del models[name]
                refused[name] = error.detail
        return CatalogScan(models, refused)

    def _hash(self, name: str, model_path: str, expected: Identity) -> str:
        try:
            folder = os.open(self._model_repository / name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as exc:
            raise OperatorError(f"its folder cannot be read: {exc.strerror}") from exc
        try:
            with _open(folder, model_path) as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
                if _identity(os.fstat(content.fileno())) != expected:
                    raise OperatorError("its model file is being changed")
        finally:
            os.close(folder)
        return digest

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
        try:
            for _ in range(LOOKS):
                # Held open: all that is read is of one entry, even if another takes its place meanwhile.
                folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    looked = _look_at(folder, name, known)
                    if _is_at(folder, path):
                        return looked
                finally:
                    os.close(folder)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as exc:
            # It is there, and will be read when there is a descriptor, or its disk is back.
            return known or _Looked((), None, f"its folder cannot be read: {exc.strerror}", is_final=False)
        return known


def _look_at(folder: int, name: str, known: _Looked | None) -> _Looked | None:
    """Raises OSError where the state of a file cannot be told."""
    if _status(folder, METADATA) is None:
        return None
    if known is not None and known.is_final and known.fingerprint == _fingerprint(folder, known.model_path):
        return known
    return _look_into(folder, name, known)


def _is_at(folder: int, path: Path) -> bool:
    """Whether it lies there still: what has lost its place may have lost its files, too."""
    with suppress(OSError):
        return os.path.samestat(os.fstat(folder), path.stat())
    return False


def _look_into(folder: int, name: str, known: _Looked | None) -> _Looked:
    before = _fingerprint(folder, None)
    model_path: str | None = None
    found: CatalogModel | str
    is_final = True
    try:
        contract = _read_contract(folder, name)
        file, identity = contract.model_info.model_file, None
        if file is not None:
            model_path = f"{contract.model_info.version}/{file.name}"
            before = _fingerprint(folder, model_path)
            identity = before[-1]
            _require_complete(identity, file.size_bytes)
        config = _read(folder, CONFIG)
        found = CatalogModel(
            contract,
            read_max_batch_size(config, contract),
            hashlib.sha256(config).hexdigest(),
            identity or (),
        )
        if known is not None and _is_being_written(known, before):
            found, is_final = "its model file is being written", False
    except OperatorError as error:
        found, is_final = error.detail, not isinstance(error.__cause__, OSError)
    except Exception:  # whatever is odd in this one must not hold up the others
        logger.exception("an entry cannot be read", extra={"facts": {"model": name}})
        found = "its files cannot be read"
    return _Looked(before, model_path, found, is_final)


def _is_being_written(known: _Looked, fingerprint: Fingerprint) -> bool:
    """Whether the model's file has changed in place since the last look: then it may go on changing."""
    before, now = known.fingerprint[2:], fingerprint[2:]
    return before != now and [each[0] for each in before if each] == [each[0] for each in now if each] != []


def _fingerprint(folder: int, model_path: str | None) -> Fingerprint:
    small = [_status(folder, file) for file in (METADATA, CONFIG)]
    fingerprint = tuple(status and (*_identity(status), status.st_ctime_ns) for status in small)
    if model_path is None:
        return fingerprint
    model = _status(folder, model_path)
    return (*fingerprint, model and _identity(model))


def _status(folder: int, file: str) -> os.stat_result | None:
    """None where there is no such file. Raises OSError where that cannot be told."""
    with suppress(FileNotFoundError, NotADirectoryError):
        return os.stat(file, dir_fd=folder)
    return None


def _identity(status: os.stat_result) -> Identity:
    return status.st_ino, status.st_mtime_ns, status.st_size


def _read_contract(folder: int, name: str) -> ModelContract:
    contract = ModelContract.parse(_read(folder, METADATA))
    if contract.name != name:
        raise OperatorError(f"model_info.model_name is {contract.name!r}, the folder {name!r}")
    return contract


def _require_complete(identity: Identity | None, expected_bytes: int) -> None:
    if identity is None:
        raise OperatorError("its model file is not there")
    *_, size_bytes = identity
    if size_bytes != expected_bytes:
        raise OperatorError(f"its model file has {size_bytes} bytes, not {expected_bytes}")


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
