"""The operator's tier table: YAML in, tiers out, or an error that names line and field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from serving.domain.tenant import LOWEST_PRIORITY, Tier
from serving.errors import OperatorError

SHIPPED_TIERS = Path(__file__).parents[1] / "tiers.yaml"
MAX_FILE_BYTES = 1 << 20
MAX_COUNT = 100_000_000
"""In sixty-millionths of a picture, as buckets are filled, still exact in the doubles of Redis' scripts."""


def _price(value: object) -> Decimal:
    # A bare 0.10 is a binary float by the time we see it, and no longer a tenth.
    if not isinstance(value, str):
        raise ValueError('write a price as a quoted decimal, such as "0.50"')  # noqa: TRY004 - pydantic turns ValueError into a field's error, and TypeError into a crash
    try:
        return Decimal(value)
    except InvalidOperation:
        raise ValueError(f"{value!r} is not a decimal number") from None


TierName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]
Price = Annotated[
    Decimal, BeforeValidator(_price), Field(ge=0, allow_inf_nan=False, max_digits=15, decimal_places=6)
]
Count = Annotated[int, Field(ge=1, le=MAX_COUNT, strict=True)]


class _TierRow(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    rate_limit_per_minute: Count
    burst: Count
    monthly_quota: Annotated[int, Field(ge=0, le=MAX_COUNT * 10_000, strict=True)] | None
    max_pictures_per_request: Count
    max_concurrent_requests: Count | None
    priority: Annotated[int, Field(ge=1, le=LOWEST_PRIORITY, strict=True)]
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
    path = path or SHIPPED_TIERS
    return parse_tiers(path, read_table(path))


def read_table(path: Path) -> bytes:
    """Raises OperatorError for a file that cannot be read or is no table of this world."""
    try:
        with path.open("rb") as file:
            table = file.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise OperatorError(f"{path}: {exc.strerror}") from exc
    if len(table) > MAX_FILE_BYTES:
        raise OperatorError(f"{path}: the file has more than {MAX_FILE_BYTES} bytes.")
    return table


def parse_tiers(path: Path, table: bytes) -> Mapping[str, Tier]:
    """path: for what is said of mistakes. Raises OperatorError."""
    try:
        root = yaml.compose(table.decode(), Loader=yaml.SafeLoader)
        document = None if root is None else yaml.SafeLoader("").construct_document(root)
    except Exception as exc:
        # PyYAML's own errors, and whatever int() and the like raise for a value that does not fit its tag.
        raise OperatorError(f"{path}: {exc}") from exc
    if root is None:
        raise OperatorError(f"{path}: the file is empty; it needs a top level 'tiers:'.")
    _refuse_repeated_fields(path, root)
    try:
        rows = _TierTable.model_validate(document).tiers
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


def _refuse_repeated_fields(path: Path, root: yaml.Node) -> None:
    # PyYAML lets the last of two equal fields win without a word.
    unseen, seen = [root], {id(root)}  # by an alias, a node may be met again, even in itself
    while unseen:
        node = unseen.pop()
        names: set[object] = set()
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            if key.value in names:
                raise OperatorError(f"{path}, line {key.start_mark.line + 1}: {key.value!r} is given twice.")
            names.add(key.value)
            if id(value) not in seen:
                unseen.append(value)
                seen.add(id(value))
