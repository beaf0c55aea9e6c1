"""Calendar months in UTC, written `2026-11`: what quotas and invoices are counted by."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime

YEARS = range(2000, 9000)
"""In which something can be billed: months, days and expiries of other years are refused."""

_FORM = re.compile(r"([0-9]{4})-(0[1-9]|1[0-2])")


@dataclass(frozen=True, slots=True, order=True)
class Month:
    year: int
    number: int

    @classmethod
    def of(cls, moment: datetime) -> Month:
        utc = moment.astimezone(UTC)
        return cls(utc.year, utc.month)

    @classmethod
    def parse(cls, text: str) -> Month:
        """Raises ValueError for anything but `YYYY-MM`, and for a year in which nothing can be billed."""
        match = _FORM.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is no month; write it as 2026-11")
        if int(match[1]) not in YEARS:
            raise ValueError(f"{text!r} is no month like 2026-11: its year is {YEARS[0]} to {YEARS[-1]}")
        return cls(int(match[1]), int(match[2]))

    @property
    def begin(self) -> datetime:
        return datetime(self.year, self.number, 1, tzinfo=UTC)

    @property
    def next(self) -> Month:
        return Month(self.year + 1, 1) if self.number == 12 else Month(self.year, self.number + 1)

    @property
    def previous(self) -> Month:
        return Month(self.year - 1, 12) if self.number == 1 else Month(self.year, self.number - 1)

    @property
    def end(self) -> datetime:
        """The first moment after it."""
        return self.next.begin

    def __str__(self) -> str:
        return f"{self.year:04d}-{self.number:02d}"
