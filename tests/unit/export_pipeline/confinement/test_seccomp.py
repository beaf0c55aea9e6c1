"""The compiled filter, run by an interpreter of classic BPF that knows the instructions we use."""

from __future__ import annotations

import struct
from errno import ENOSYS, EPERM

import pytest

from export_pipeline.confinement.seccomp import Argument, Refusal, compile_filter

X86_64, I386 = 0xC000003E, 0x40000003
ALLOWED, KILLED = 0x7FFF0000, 0x80000000
REFUSALS = [
    Refusal([10, 11]),
    Refusal([12], errno=ENOSYS),
    Refusal([13], errno=0),
    Refusal([14], unless=Argument(0, 77)),
    Refusal([15], when=Argument(2, 0x200, mask=0x203)),
]


def verdict(call: int, arguments: tuple[int, ...] = (), architecture: int = X86_64) -> int:
    """What the filter answers, as the kernel would compute it."""
    data = struct.pack("=IIQ6Q", call, architecture, 0, *(arguments + (0,) * 6)[:6])
    program = list(struct.iter_unpack("=HBBI", compile_filter(REFUSALS)))
    accumulator = at = 0
    while True:
        code, then, otherwise, operand = program[at]
        at += 1
        if code == 0x06:
            return int(operand)
        if code == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, operand)
        elif code == 0x54:
            accumulator &= operand
        else:
            holds = accumulator == operand if code == 0x15 else accumulator >= operand
            assert code in {0x15, 0x35}
            at += then if holds else otherwise


def refused(errno: int) -> int:
    return 0x00050000 | errno


@pytest.mark.parametrize(
    ("call", "arguments", "expected"),
    [
        (9, (), ALLOWED),
        (10, (), refused(EPERM)),
        (11, (), refused(EPERM)),
        (12, (), refused(ENOSYS)),
        (13, (), refused(0)),
        (14, (77,), ALLOWED),
        (14, (78,), refused(EPERM)),
        (14, (0xFFFFFFFF,), refused(EPERM)),
        (15, (0, 0, 0x200), refused(EPERM)),
        (15, (0, 0, 0x80200), refused(EPERM)),
        (15, (0, 0, 0x201), ALLOWED),
        (15, (0, 0, 0), ALLOWED),
        (16, (), ALLOWED),
    ],
)
def test_calls_are_judged_by_number_and_argument(
    call: int, arguments: tuple[int, ...], expected: int
) -> None:
    assert verdict(call, arguments) == expected


@pytest.mark.parametrize(("call", "architecture"), [(10, I386), (9, I386), (0x40000000 | 9, X86_64)])
def test_foreign_calls_kill(call: int, architecture: int) -> None:
    assert verdict(call, architecture=architecture) == KILLED
