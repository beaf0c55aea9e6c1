"""Money in whole millionths of the operator's currency: integers add up, whatever the order."""

from __future__ import annotations

from decimal import Decimal

MICROS_PER_UNIT = 1_000_000


def micros(amount: Decimal) -> int:
    """Raises ValueError for an amount with more than six decimals: it would have to be rounded."""
    scaled = amount * MICROS_PER_UNIT
    if scaled != scaled.to_integral_value():
        raise ValueError(f"{amount} has more than six decimals")
    return int(scaled)


def priced(pictures: int, price_micros_per_1000: int) -> int:
    """What so many pictures cost, in micros; a half goes to the even neighbour."""
    whole, rest = divmod(pictures * price_micros_per_1000, 1000)
    return whole + (rest > 500 or (rest == 500 and whole % 2 == 1))


def as_text(amount_micros: int) -> str:
    """In units, always with six decimals: `12.340000`. From 0."""
    units, rest = divmod(amount_micros, MICROS_PER_UNIT)
    return f"{units}.{rest:06d}"
