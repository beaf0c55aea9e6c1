"""In-memory twin of the model catalog."""

from __future__ import annotations

from collections.abc import Iterable

from serving.domain.contract import ModelContract
from serving.errors import OperatorError
from serving.ports import CatalogModel, CatalogScan

MAX_BATCH_SIZE = 4


class InMemoryCatalog:
    """Put models and refusals in and take them out: the next scan finds what is there then.

    `false` holds, by name, why a model's file is not the one that its contract is about.
    """

    def __init__(self, contracts: Iterable[ModelContract] = ()) -> None:
        self.models = {contract.name: CatalogModel(contract, MAX_BATCH_SIZE) for contract in contracts}
        self.refused: dict[str, str] = {}
        self.false: dict[str, str] = {}

    def put(self, contract: ModelContract) -> None:
        self.models[contract.name] = CatalogModel(contract, MAX_BATCH_SIZE)

    def scan(self) -> CatalogScan:
        return CatalogScan(dict(self.models), dict(self.refused))

    def verify(self, model: CatalogModel) -> None:
        if (why := self.false.get(model.contract.name)) is not None:
            raise OperatorError(why)
