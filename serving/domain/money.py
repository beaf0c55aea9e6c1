"""Money in whole millionths of the operator's currency: integers add up, whatever the order."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal

MICROS_PER_UNIT = 1_000_000


def micros(amount: Decimal) -> int:
    """Raises ValueError for an amount with more than six decimals: it would have to be rounded."""
    scaled = amount * MICROS_PER_UNIT
    if scaled != scaled.to_integral_value():
        raise ValueError(f"{amount} has more than six decimals")
    return int(scaled)


def priced(pictures: int, price_micros_per_1000: int) -> int:
    """What so many pictures cost, in micros; a half goes to the even neighbour."""
    exact = Decimal(pictures * price_micros_per_1000) / 1000
    return int(exact.to_integral_value(ROUND_HALF_EVEN))


def as_decimal(amount_micros: int) -> Decimal:
    """In units, always with six decimals."""
    return Decimal(amount_micros).scaleb(-6)
