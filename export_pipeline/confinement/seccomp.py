"""A filter over system calls (seccomp, mode 2), compiled here to the kernel's classic BPF.

It closes what Landlock leaves open: sockets of every family, new processes, signals and limits set on other
processes, owners and modes of files, memory that belongs to nobody.
"""

from __future__ import annotations

import ctypes
import platform
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from errno import EPERM

from export_pipeline.confinement.libc import prctl

_PR_SET_SECCOMP, _MODE_FILTER = 22, 2
_AUDIT_ARCH_X86_64 = 0xC000003E
_X32_CALLS = 0x40000000
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000

# Instructions of classic BPF (linux/bpf_common.h); offsets into struct seccomp_data.
_LOAD, _AND, _JUMP_EQUAL, _JUMP_AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16


@dataclass(frozen=True, slots=True)
class Argument:
    """The low 32 bits of a call's argument, masked, compared with a value."""

    index: int
    value: int
    mask: int = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Refusal:
    """These calls answer `errno` and do nothing; with errno 0 they pretend to have done it.

    when: refuse only where the argument matches. unless: only where it does not.
    """

    calls: Sequence[int]
    errno: int = EPERM
    when: Argument | None = None
    unless: Argument | None = None


def is_supported() -> bool:
    """The numbers of system calls differ from machine to machine; ours are those of 64-bit x86."""
    return platform.machine() == "x86_64"


def install(refusals: Sequence[Refusal]) -> None:
    """For this thread and all that it starts from now on. The caller has set PR_SET_NO_NEW_PRIVS."""
    code = compile_filter(refusals)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer)))
    prctl(_PR_SET_SECCOMP, _MODE_FILTER, program)


def compile_filter(refusals: Sequence[Refusal]) -> bytes:
    """`struct sock_filter[]`. A call of a foreign architecture, whose numbers mean something else, kills."""
    code = _instruction(_LOAD, _ARCHITECTURE_AT)
    code += _instruction(_JUMP_EQUAL, _AUDIT_ARCH_X86_64, then=1)
    code += _instruction(_RETURN, _KILL_PROCESS)
    code += _instruction(_LOAD, _NUMBER_AT)
    code += _instruction(_JUMP_AT_LEAST, _X32_CALLS, otherwise=1)
    code += _instruction(_RETURN, _KILL_PROCESS)
    for refusal in refusals:
        verdict = _verdict(refusal)
        for call in refusal.calls:
            code += _instruction(_JUMP_EQUAL, call, otherwise=len(verdict) // 8) + verdict
    return code + _instruction(_RETURN, _ALLOW)


def _verdict(refusal: Refusal) -> bytes:
    refuse = _instruction(_RETURN, _ERRNO | refusal.errno)
    argument = refusal.when or refusal.unless
    if argument is None:
        return refuse
    code = _instruction(_LOAD, _ARGUMENTS_AT + 8 * argument.index)
    code += _instruction(_AND, argument.mask)
    if refusal.when is not None:
        code += _instruction(_JUMP_EQUAL, argument.value, otherwise=1)
    else:
        code += _instruction(_JUMP_EQUAL, argument.value, then=1)
    return code + refuse + _instruction(_RETURN, _ALLOW)


def _instruction(code: int, operand: int, *, then: int = 0, otherwise: int = 0) -> bytes:
    """then, otherwise: how many instructions a jump leaps over."""
    return struct.pack("=HBBI", code, then, otherwise, operand)
