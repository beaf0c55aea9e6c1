"""In-memory twin of the model catalog."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from serving.domain.contract import ModelContract
from serving.errors import ModelNotFound


class InMemoryCatalog:
    def __init__(self, contracts: Iterable[ModelContract]) -> None:
        self._contracts = {contract.name: contract for contract in contracts}

    def get(self, name: str) -> ModelContract:
        if name not in self._contracts:
            raise ModelNotFound(name)
        return self._contracts[name]

    def names(self) -> Sequence[str]:
        return sorted(self._contracts)
