"""The operator's tier table: YAML in, tiers out, or an error that names line and field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from serving.domain.tenant import Tier
from serving.errors import OperatorError

SHIPPED_TIERS = Path(__file__).parents[1] / "tiers.yaml"


def _price(value: object) -> Decimal:
    # A bare 0.10 is a binary float by the time we see it, and no longer a tenth.
    if not isinstance(value, str):
        raise ValueError('write a price as a quoted decimal, such as "0.50"')  # noqa: TRY004 - pydantic turns ValueError into a field's error, and TypeError into a crash
    try:
        return Decimal(value)
    except InvalidOperation:
        raise ValueError(f"{value!r} is not a decimal number") from None


TierName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]
Price = Annotated[Decimal, BeforeValidator(_price), Field(ge=0, allow_inf_nan=False)]
AtLeastOne = Annotated[int, Field(ge=1, strict=True)]


class _TierRow(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    rate_limit_per_minute: AtLeastOne
    burst: AtLeastOne
    monthly_quota: Annotated[int, Field(ge=0, strict=True)] | None
    max_pictures_per_request: AtLeastOne
    gpu: Annotated[bool, Field(strict=True)]
    price_per_1000: Price
    price_per_month: Price

    @model_validator(mode="after")
    def _longest_request_fits_the_bucket(self) -> Self:
        if self.max_pictures_per_request > self.burst:
            raise ValueError(
                f"max_pictures_per_request {self.max_pictures_per_request} is more than the burst of "
                f"{self.burst}, so such a request could never be admitted"
            )
        return self

    def tier(self, name: str) -> Tier:
        return Tier(name=name, **self.model_dump())


class _TierTable(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    tiers: Annotated[dict[TierName, _TierRow], Field(min_length=1)]


def load_tiers(path: Path | None) -> Mapping[str, Tier]:
    """Read-only, by name; None reads the table that ships with the gateway.

    Raises OperatorError for a file that cannot be read, is no YAML, or says something we do not know.
    """
    path = SHIPPED_TIERS if path is None else path
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        table = None if root is None else yaml.SafeLoader("").construct_document(root)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as exc:
        raise OperatorError(f"{path}: {exc}") from exc
    if root is None:
        raise OperatorError(f"{path}: the file is empty; it needs a top level 'tiers:'.")
    _refuse_repeated_fields(path, root)
    try:
        rows = _TierTable.model_validate(table).tiers
    except ValidationError as exc:
        raise OperatorError("\n".join(_described(path, root, exc))) from exc
    return MappingProxyType({name: row.tier(name) for name, row in rows.items()})


def _described(path: Path, root: yaml.Node, exc: ValidationError) -> list[str]:
    return [
        f"{path}, line {_line(root, error['loc'])}, {_dotted(error['loc'])}: "
        + error["msg"].removeprefix("Value error, ")
        for error in exc.errors(include_url=False, include_context=False, include_input=False)
    ]


def _dotted(location: Sequence[str | int]) -> str:
    return ".".join(str(part) for part in location if part != "[key]") or "top level"


def _line(node: yaml.Node, location: Sequence[str | int]) -> int:
    """Line, from 1, of the deepest part of `location` that the file has."""
    line: int = node.start_mark.line + 1
    for part in location:
        entries = node.value if isinstance(node, yaml.MappingNode) else []
        found = next(((key, value) for key, value in entries if key.value == part), None)
        if found is None:
            break
        key, node = found
        line = key.start_mark.line + 1
    return line


def _refuse_repeated_fields(path: Path, node: yaml.Node) -> None:
    # PyYAML lets the last of two equal fields win without a word.
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[object] = set()
    for key, value in node.value:
        if key.value in seen:
            raise OperatorError(f"{path}, line {key.start_mark.line + 1}: {key.value!r} is given twice.")
        seen.add(key.value)
        _refuse_repeated_fields(path, value)
