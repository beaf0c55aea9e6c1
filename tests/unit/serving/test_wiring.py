from __future__ import annotations

import pytest

from serving.wiring import _is_loopback


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("", False),
        ("127.0.0.1:8001", True),
        ("127.5.0.1:8001", True),
        ("localhost:8001", True),
        ("[::1]:8001", True),
        ("10.0.0.7:8001", False),
        ("triton.example:8001", False),
        ("localhost.example:8001", False),
        ("dns:///localhost:8001", False),  # any name may be behind it
    ],
)
def test_only_a_loopback_address_is_surely_this_machine(address: str, expected: bool) -> None:
    assert _is_loopback(address) is expected
