"""What the control plane takes and gives, as types."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
)

from serving.domain.key_record import MAX_NAME_CHARACTERS, MAX_OVERLAP, can_be_a_name

MAX_MODELS = 1000

_RFC_3339 = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)


def _readable(name: str) -> str:
    if not can_be_a_name(name):
        raise ValueError("names have printable characters")
    return name


def _rfc_3339(value: object) -> object:
    """Or else pydantic takes a number in quotes for a Unix time."""
    if not isinstance(value, str) or _RFC_3339.fullmatch(value) is None:
        raise ValueError("write it as 2026-11-21T13:00:00Z")
    return value


Name = Annotated[
    str, StringConstraints(min_length=1, max_length=MAX_NAME_CHARACTERS), AfterValidator(_readable)
]
# Not strict: that would refuse any text, once a validator of ours has had it.
Moment = Annotated[AwareDatetime, Field(strict=False), BeforeValidator(_rfc_3339)]
MAX_OVERLAP_SECONDS = int(MAX_OVERLAP.total_seconds())


class NewKey(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    user: Name = Field(description="Who will own the key, and is billed for its use")
    tier: Name = Field(description="Sets the key's limits and prices")
    models: Annotated[list[Name], Field(min_length=1, max_length=MAX_MODELS)] | None = Field(
        default=None, description="The only ones that it may use; null: every model, now and later"
    )
    expires_at: Moment | None = Field(default=None, description="RFC 3339; null: never")


class Rotation(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    overlap_seconds: Annotated[int, Field(ge=0, le=MAX_OVERLAP_SECONDS)] = Field(
        description="How long the earlier secrets keep working; 0 ends them now"
    )


class KeyFilter(BaseModel):
    model_config = ConfigDict(extra="forbid")

    user: Name | None = Field(default=None, description="Whose; a user sees their own only")


class Secret(BaseModel):
    """One of the texts that open a key, without what is secret about it."""

    prefix: str = Field(description="What the text begins with", examples=["pk_4fQ8sXw2LmZa"])
    created_at: datetime
    expires_at: datetime | None = Field(description="Where its overlap ends; null for the newest")


class Key(BaseModel):
    id: str
    prefix: str = Field(description="Of the newest secret")
    user: str
    tier: str
    models: list[str] | None = Field(description="null: every model")
    state: Literal["active", "disabled", "expired", "revoked"]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    secrets: list[Secret] = Field(description="Oldest first")


class Issued(Key):
    api_key: str = Field(description="The whole text, shown this once and kept nowhere")


class KeyList(BaseModel):
    keys: list[Key] = Field(description="Oldest first, also revoked ones")


class SwitchedUser(BaseModel):
    user: str
    enabled: bool
    keys: int = Field(description="How many of their keys that stops, or lets work again")
