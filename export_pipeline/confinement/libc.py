"""The C library, for calls that Python has no function for."""

from __future__ import annotations

import ctypes


def libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def prctl(option: int, *arguments: object) -> None:
    """Raises OSError. Up to four arguments; the rest is 0."""
    zeros = [0] * (4 - len(arguments))
    if libc().prctl(option, *arguments, *zeros) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}")
