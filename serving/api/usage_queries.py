"""`from`, `to`, `group_by` and `month`: which of what has been billed is asked for."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from serving.api.control_schemas import Name
from serving.domain.month import YEARS, Month
from serving.domain.usage import GroupBy, UsageQuery
from serving.errors import InvalidRequest

MOST_DAYS = 3660
MOST_DAYS_BY_HOUR = 92
"""So that an answer has a bound: by the hour it has 24 rows a day."""

_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_SECOND = r"[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}"
_ZONE = r"([Zz]|[+-][0-9]{2}:[0-9]{2})"
_RFC_3339 = re.compile(rf"{_DAY.pattern}{_SECOND}(\.0+)?{_ZONE}")
_DAY_OR_HOUR = {
    "anyOf": [
        {"type": "string", "format": "date"},
        # With minutes only where the zone's own make a whole hour of them: 13:30+05:30.
        {"type": "string", "format": "date-time", "pattern": rf":[0-9]{{2}}:00(\.0+)?{_ZONE}$"},
    ]
}


def _moment(text: str) -> datetime:
    """In UTC. Raises ValueError for what is neither a day nor a whole hour."""
    if not (_DAY.fullmatch(text) or _RFC_3339.fullmatch(text)):
        raise ValueError("write it as 2026-11-21 or 2026-11-21T13:00:00Z")
    moment = datetime.fromisoformat(text.upper())
    if moment.year not in YEARS:
        raise ValueError("nothing was billed that year")
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    if moment.minute or moment.second:
        raise ValueError("usage is kept by whole hours in UTC")
    return moment


Moment = Annotated[datetime, BeforeValidator(_moment), WithJsonSchema(_DAY_OR_HOUR)]


_MONTH = {"type": "string", "pattern": "^[2-8][0-9]{3}-(0[1-9]|1[0-2])$"}


class _Period(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    begin: Moment | None = Field(
        default=None,
        alias="from",
        description="A day or a whole hour in UTC; default: where the month begins",
    )
    end: Moment | None = Field(
        default=None, alias="to", description="The first moment that counts no more; default: the month's end"
    )
    group_by: GroupBy

    def query(self, now: datetime) -> UsageQuery:
        """An end that is not given is that of the other one's month, or of this one.

        Raises InvalidRequest for a period that is none, or too long.
        """
        month = Month.of(self.begin or (self.end - timedelta(hours=1) if self.end else now))
        begin, end = self.begin or month.begin, self.end or month.end
        if begin >= end:
            raise InvalidRequest("'to' must be later than 'from'.")
        most_days = MOST_DAYS_BY_HOUR if self.group_by == "hour" else MOST_DAYS
        if end - begin > timedelta(days=most_days):
            raise InvalidRequest(f"By {self.group_by}, 'to' may be {most_days} days after 'from' at most.")
        return UsageQuery(begin, end, self.group_by)


class OwnUsageParameters(_Period):
    """What a key may ask about itself."""

    group_by: Literal["total", "deployment", "day", "hour"] = Field(
        default="deployment", description="What each row is of"
    )


class DeploymentUsageParameters(_Period):
    """What a key may ask about its use of one deployment."""

    group_by: Literal["total", "day", "hour"] = Field(default="total", description="What each row is of")


class UsageParameters(_Period):
    """What users may ask about all of their keys, and the operator about everybody's."""

    group_by: GroupBy = Field(default="total", description="What each row is of")
    user: Name | None = Field(default=None, description="Only what this user's keys were used for")
    key_id: Name | None = Field(default=None, description="Only what this key was used for")

    def query(self, now: datetime) -> UsageQuery:
        return replace(super().query(now), user=self.user, key_id=self.key_id)


class InvoiceParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    month: Annotated[Month, BeforeValidator(Month.parse), WithJsonSchema(_MONTH)] = Field(
        description="In UTC", examples=["2026-11"]
    )
    user: Name | None = Field(default=None, description="Whose; a user gets their own only")
    format: Literal["json", "csv"] | None = Field(
        default=None, description="Without it, CSV where `Accept` names text/csv and not JSON"
    )
