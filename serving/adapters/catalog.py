"""The models that can be served: folders of Triton's model repository that carry a `metadata.json`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from serving.adapters.model_config import read_max_batch_size
from serving.domain.contract import ModelContract
from serving.errors import ModelNotFound, OperatorError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Model:
    contract: ModelContract
    max_batch_size: int


class FolderCatalog:
    """Read once, at construction. A model we do not fully understand is left out, loudly; the rest serve."""

    def __init__(self, model_repository: Path) -> None:
        self._models = _read_models(model_repository)

    def get(self, name: str) -> ModelContract:
        try:
            return self._models[name].contract
        except KeyError:
            raise ModelNotFound(name) from None

    def names(self) -> Sequence[str]:
        return sorted(self._models)

    def max_batch_size(self, name: str) -> int:
        """What Triton takes in one call. Raises KeyError."""
        return self._models[name].max_batch_size


def _read_models(model_repository: Path) -> Mapping[str, _Model]:
    models = {}
    for metadata in sorted(model_repository.glob("*/metadata.json")):
        folder = metadata.parent.name
        try:
            models[folder] = _Model(
                _read_contract(metadata, folder), read_max_batch_size(metadata.parent / "config.pbtxt")
            )
        except OperatorError as error:
            logger.warning("refused", extra={"facts": {"model": folder, "why": error.detail}})
    return models


def _read_contract(metadata: Path, folder: str) -> ModelContract:
    try:
        contract = ModelContract.parse(metadata.read_bytes())
    except OSError as exc:
        raise OperatorError(f"metadata.json cannot be read: {exc.strerror}") from exc
    if contract.name != folder:
        raise OperatorError(f"model_info.model_name is {contract.name!r}, the folder {folder!r}")
    return contract
