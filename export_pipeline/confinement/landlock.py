"""Landlock, the kernel's own fence around files: what is not granted to a process is refused to it, for good.

Written against the C interface (landlock(7)): Python has no module for it. Each ABI of the kernel knows more
kinds of access than the one before; what a kernel does not know cannot be asked of it, so we mask.
"""

from __future__ import annotations

import ctypes
import enum
import os
import struct
from collections.abc import Mapping
from pathlib import Path

from export_pipeline.confinement.libc import libc

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_VERSION_FLAG = 1
_RULE_PATH_BENEATH = 1


class Access(enum.IntFlag):
    """Kinds of access to files. Granted for a folder, they hold for everything below it."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13  # rename or link from one folder into another
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15

    READ = READ_FILE | READ_DIR
    READ_AND_RUN = READ | EXECUTE
    # No symbolic links, sockets, pipes or devices: whoever reads these files later opens files, and ours.
    WRITE = READ | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | REFER | TRUNCATE


_FOR_A_FILE = Access.EXECUTE | Access.READ_FILE | Access.WRITE_FILE | Access.TRUNCATE | Access.IOCTL_DEV
_ACCESS_BITS_BY_ABI = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_NET_TCP = 0b11  # bind, connect
_SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS = 0b11


def abi() -> int:
    """The kernel's Landlock ABI; 0 where it has none, or has it switched off."""
    version: int = libc().syscall(_CREATE_RULESET, None, 0, _VERSION_FLAG)
    return max(0, version)


def handled(abi: int) -> tuple[Access, int, int]:
    """All that this ABI can refuse: access to files, to TCP ports, to what lies outside its own domain."""
    files = Access((1 << _ACCESS_BITS_BY_ABI[min(abi, 5)]) - 1)
    return files, _NET_TCP if abi >= 4 else 0, _SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS if abi >= 6 else 0


def restrict(granted: Mapping[Path, Access]) -> None:
    """Refuse this thread, and all that it starts from now on, every file that is not granted, and TCP.

    A path that does not exist is passed over. The caller has set PR_SET_NO_NEW_PRIVS. Raises OSError.
    """
    files, net, scope = handled(abi())
    attributes = struct.pack("=QQQ", files, net, scope)
    # A kernel takes a longer structure than it knows where the rest is zero.
    ruleset = _call(_CREATE_RULESET, attributes, len(attributes), 0)
    try:
        for path, access in granted.items():
            _grant(ruleset, path, access & files)
        _call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _grant(ruleset: int, path: Path, access: Access) -> None:
    try:
        file = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        allowed = access if path.is_dir() else access & _FOR_A_FILE
        _call(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, struct.pack("=Qi", allowed, file), 0)
    finally:
        os.close(file)


def _call(number: int, *arguments: int | bytes) -> int:
    result: int = libc().syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"Landlock refused system call {number}")
    return result
