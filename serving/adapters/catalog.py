"""The models that can be served: folders of Triton's model repository that carry a `metadata.json`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from serving.domain.contract import ModelContract
from serving.errors import ModelNotFound, OperatorError

logger = logging.getLogger(__name__)


class FolderCatalog:
    """Read once, at construction. A model we do not fully understand is left out, loudly; the rest serve."""

    def __init__(self, model_repository: Path) -> None:
        self._contracts = dict(_read_contracts(model_repository))

    def get(self, name: str) -> ModelContract:
        try:
            return self._contracts[name]
        except KeyError:
            raise ModelNotFound(name) from None

    def names(self) -> Sequence[str]:
        return sorted(self._contracts)


def _read_contracts(model_repository: Path) -> Mapping[str, ModelContract]:
    contracts = {}
    for metadata in sorted(model_repository.glob("*/metadata.json")):
        folder = metadata.parent.name
        try:
            contracts[folder] = _read_contract(metadata, folder)
        except OperatorError as error:
            logger.warning("refused", extra={"facts": {"model": folder, "why": error.detail}})
    return contracts


def _read_contract(metadata: Path, folder: str) -> ModelContract:
    contract = ModelContract.parse(metadata.read_bytes())
    if contract.name != folder:
        raise OperatorError(f"model_info.model_name is {contract.name!r}, the folder {folder!r}")
    return contract
