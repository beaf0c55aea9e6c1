"""What the control plane takes and gives, as types."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from serving.domain.key_record import MAX_NAME_CHARACTERS, MAX_OVERLAP, IssuedKey, KeyRecord

MAX_MODELS = 1000

Name = Annotated[str, StringConstraints(min_length=1, max_length=MAX_NAME_CHARACTERS)]
MAX_OVERLAP_SECONDS = int(MAX_OVERLAP.total_seconds())


class NewKey(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    user: Name = Field(description="Who will own the key, and is billed for its use")
    tier: Name = Field(description="Sets the key's limits and prices")
    models: Annotated[list[Name], Field(min_length=1, max_length=MAX_MODELS)] | None = Field(
        default=None, description="The only ones that it may use; null: every model, now and later"
    )
    expires_at: AwareDatetime | None = Field(default=None, description="RFC 3339; null: never")


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


def key(record: KeyRecord, now: datetime) -> dict[str, Any]:
    return {
        "id": record.id,
        "user": record.user,
        "tier": record.tier,
        "models": None if record.models is None else sorted(record.models),
        "state": record.state(now),
        "created_at": record.created_at,
        "expires_at": record.expires_at,
        "revoked_at": record.revoked_at,
        "last_used_at": record.last_used_at,
        "secrets": [
            {"prefix": f"pk_{each.prefix}", "created_at": each.created_at, "expires_at": each.expires_at}
            for each in record.secrets
        ],
    }


def issued(fresh: IssuedKey, now: datetime) -> dict[str, Any]:
    return {**key(fresh.record, now), "api_key": fresh.api_key.reveal()}
