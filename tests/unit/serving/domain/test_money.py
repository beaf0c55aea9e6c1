from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.domain.money import as_text, micros, priced


@pytest.mark.parametrize(
    ("amount", "expected"),
    [("0", 0), ("0.000001", 1), ("0.50", 500_000), ("500", 500_000_000), ("1E+3", 1_000_000_000)],
)
def test_amounts_become_whole_micros(amount: str, expected: int) -> None:
    assert micros(Decimal(amount)) == expected


@pytest.mark.parametrize("amount", ["0.0000001", "1.9999999", "NaN"])
def test_what_would_have_to_be_rounded_is_refused(amount: str) -> None:
    with pytest.raises(ValueError, match="six decimals"):
        micros(Decimal(amount))


@pytest.mark.parametrize(
    ("pictures", "price_micros_per_1000", "expected"),
    [
        (0, 500_000, 0),
        (1, 0, 0),
        (1, 1000, 1),
        (1, 500, 0),  # a half, to the even 0
        (3, 500, 2),  # 1.5, to the even 2
        (5, 500, 2),  # 2.5, to the even 2
        (1, 501, 1),
        (1, 499, 0),
        (10**9, 10**15, 10**21),  # no database's integer, and still exact
    ],
)
def test_a_half_micro_goes_to_the_even_neighbour(
    pictures: int, price_micros_per_1000: int, expected: int
) -> None:
    assert priced(pictures, price_micros_per_1000) == expected


@given(st.integers(0, 10**40), st.integers(0, 10**40))
def test_prices_are_exact_at_any_size(pictures: int, price_micros_per_1000: int) -> None:
    assert priced(pictures, price_micros_per_1000) == round(Fraction(pictures * price_micros_per_1000, 1000))


@pytest.mark.parametrize(
    ("amount_micros", "text"),
    [
        (0, "0.000000"),
        (1, "0.000001"),
        (999_999, "0.999999"),
        (12_340_000, "12.340000"),
        (10**21 + 1, "1000000000000000.000001"),
    ],
)
def test_amounts_are_written_with_six_decimals(amount_micros: int, text: str) -> None:
    assert as_text(amount_micros) == text


@given(st.integers(0, 10**40))
def test_what_is_written_is_what_was_meant(amount_micros: int) -> None:
    assert Fraction(as_text(amount_micros)) * 1_000_000 == amount_micros
