"""In-memory twin of the model catalog."""

from __future__ import annotations

from collections.abc import Iterable

from serving.domain.contract import ModelContract
from serving.ports import CatalogModel, CatalogScan

MAX_BATCH_SIZE = 4


class InMemoryCatalog:
    """Put models and refusals in and take them out: the next scan finds what is there then."""

    def __init__(self, contracts: Iterable[ModelContract] = ()) -> None:
        self.models = {contract.name: CatalogModel(contract, MAX_BATCH_SIZE) for contract in contracts}
        self.refused: dict[str, str] = {}

    def put(self, contract: ModelContract) -> None:
        self.models[contract.name] = CatalogModel(contract, MAX_BATCH_SIZE)

    def scan(self) -> CatalogScan:
        return CatalogScan(dict(self.models), dict(self.refused))
