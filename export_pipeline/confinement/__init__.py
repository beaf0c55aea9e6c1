"""What the process that opens a checkpoint may reach: its own folder, and nothing else of this machine.

A checkpoint is a pickle, and a pickle is a program. So before anything opens one, the process gives up, for
good and for all that it might start:

- every capability, root's too; and gaining any by running a program (PR_SET_NO_NEW_PRIVS)
- every file (Landlock) but the ones to read below and its own folder, where it makes plain files and folders,
  never links, sockets, pipes or devices: who reads the results later is not led astray by them
- every socket of every family, and io_uring, which makes sockets too (seccomp)
- new processes, so nothing is left behind and what it uses is what one process uses; threads it may start
- signals, limits and priorities of other processes, their memory, and shared memory and queues with them
- owners, modes, times and truncation of files by their path, which Landlock does not guard
- files above a size, memory above a limit, dumps of its memory

Still open: whether a path exists and how large it is, by stat(2); CPU time, up to the job's time limit; room
on the disk, which the executor watches; and errors in the kernel itself. No GPU is among the devices.

Why root stays root, without its capabilities: the job's folder belongs to the caller, and another user could
only work in it after it had been given away. What another user would shield besides, the rules above do.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct
import sys
from collections.abc import Sequence
from errno import ENOSYS
from pathlib import Path
from typing import Final

import export_pipeline
from export_pipeline.confinement import landlock, seccomp
from export_pipeline.confinement.landlock import Access
from export_pipeline.confinement.libc import libc, prctl
from export_pipeline.confinement.seccomp import Argument, Refusal
from export_pipeline.errors import ExportError
from export_pipeline.request import GIBIBYTE

MAX_FILE_BYTES: Final = 32 * 1024**3

_SYSTEM: Final = (
    "/usr",
    "/lib",
    "/lib32",
    "/lib64",
    "/bin",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/fonts",
    "/etc/os-release",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/version",
    "/sys/devices/system",
    "/dev/urandom",
    "/dev/random",
    "/dev/zero",
)

_CLONE_THREAD = 0x10000
_O_TRUNC_AND_MODE, _O_TRUNC_TO_READ = os.O_TRUNC | os.O_ACCMODE, os.O_TRUNC | os.O_RDONLY
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 24, 38
_CAPABILITY_VERSION = 0x20080522


def require_confinable() -> None:
    """Raises ExportError where this kernel cannot confine a process as above."""
    if not seccomp.is_supported() or landlock.abi() == 0:
        raise ExportError(
            "This machine cannot confine the process that opens the checkpoint: that takes 64-bit x86 and "
            "Linux 5.13 or newer with Landlock switched on. A checkpoint that you trust can be exported "
            "unconfined, if you ask for that."
        )


def confine(own_folder: Path, readable: Sequence[Path], memory_bytes: int) -> None:
    """Give up all of the above. For a process of one thread. There is no way back.

    readable: files and folders, besides the system's, Python's and this package's.
    memory_bytes: of writable memory, used or not. Raises ExportError.
    """
    require_confinable()
    try:
        _limit_resources(memory_bytes)
        prctl(_PR_SET_NO_NEW_PRIVS, 1)
        _drop_capabilities()
        landlock.restrict(_granted(own_folder, readable))
        seccomp.install(_refusals(os.getpid()))
    except OSError as exc:
        raise ExportError(f"This process could not be confined: {exc}.") from exc


def die_with_parent() -> None:
    """The kernel kills us when the thread that started us ends."""
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def over_memory(limit_bytes: int) -> str:
    return f"The export needs more memory than its limit of {limit_bytes / GIBIBYTE:.1f} GiB."


def _granted(own_folder: Path, readable: Sequence[Path]) -> dict[Path, Access]:
    python = (sys.prefix, sys.base_prefix, *filter(None, sys.path))
    package = Path(export_pipeline.__file__).resolve().parent
    granted = {Path(path): Access.READ_AND_RUN for path in (*_SYSTEM, *python)}
    # Files of the package may be links, in a checkout: the schema lies in the model repository.
    for path in (package, *(path.resolve() for path in package.rglob("*") if path.is_symlink())):
        granted[path] = Access.READ
    # The entry of this process: its children, if it could have any, would have others.
    granted[Path(f"/proc/{os.getpid()}")] = Access.READ
    granted[Path("/dev/null")] = Access.READ | Access.WRITE_FILE
    granted |= dict.fromkeys(readable, Access.READ)
    granted[own_folder] = Access.WRITE
    return granted


def _limit_resources(memory_bytes: int) -> None:
    wanted = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_DATA: memory_bytes,
        resource.RLIMIT_FSIZE: MAX_FILE_BYTES,
    }
    for which, limit in wanted.items():
        _, hard = resource.getrlimit(which)
        bound = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(which, (bound, bound))
    # A write beyond RLIMIT_FSIZE is to fail with an error that says so.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def _drop_capabilities() -> None:
    c_library = libc()
    capability = 0
    while (
        c_library.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) == 0
    ):  # fails after the last, or without the right
        capability += 1
    none = struct.pack("=6I", *[0] * 6)
    if c_library.capset(struct.pack("=Ii", _CAPABILITY_VERSION, 0), none) != 0:
        raise OSError(ctypes.get_errno(), "capabilities are kept")


def _refusals(own_pid: int) -> list[Refusal]:
    """By the numbers of system calls on x86_64, named behind each line."""
    return [
        Refusal([41]),  # socket; socketpair, which reaches nobody, stays
        Refusal([425, 426, 427]),  # io_uring_setup, _enter, _register
        Refusal([57, 58]),  # fork, vfork
        Refusal([56], unless=Argument(0, _CLONE_THREAD, _CLONE_THREAD)),  # clone, but for a thread
        Refusal([435], errno=ENOSYS),  # clone3, whose flags no filter sees: the C library falls back to clone
        Refusal([272, 308]),  # unshare, setns: a user namespace would bring capabilities back
        Refusal([62, 234], unless=Argument(0, own_pid)),  # kill, tgkill
        Refusal([200, 129, 297, 424]),  # tkill, rt_sigqueueinfo, rt_tgsigqueueinfo, pidfd_send_signal
        Refusal([302], unless=Argument(0, 0)),  # prlimit64
        # setpriority, sched_setparam, sched_setscheduler, ioprio_set, sched_setattr
        Refusal([141, 142, 144, 251, 314]),
        # sched_setaffinity: ONNX Runtime asks it for its threads, and would complain in every log
        Refusal([203], errno=0),
        # ptrace, perf_event_open, process_vm_readv, process_vm_writev, kcmp, bpf, userfaultfd, pidfd_getfd
        Refusal([101, 298, 310, 311, 312, 321, 323, 438]),
        Refusal([29, 30, 31, 64, 65, 66, 220]),  # shmget, shmat, shmctl, semget, semop, semctl, semtimedop
        Refusal([68, 69, 70, 71, 240, 241]),  # msgget, msgsnd, msgrcv, msgctl, mq_open, mq_unlink
        Refusal([319, 447]),  # memfd_create, memfd_secret: memory that no process is charged with
        Refusal([248, 249, 250]),  # add_key, request_key, keyctl
        Refusal([254, 300, 301]),  # inotify_add_watch, fanotify_init, fanotify_mark
        # chmod, fchmod, fchmodat, fchmodat2, utime, utimes, futimesat, utimensat: shutil copies these too
        Refusal([90, 91, 268, 452, 132, 235, 261, 280], errno=0),
        Refusal([92, 93, 94, 260]),  # chown, fchown, lchown, fchownat
        # setxattr, lsetxattr, fsetxattr, removexattr, lremovexattr, fremovexattr, setxattrat, removexattrat
        Refusal([188, 189, 190, 197, 198, 199, 463, 466]),
        Refusal([469]),  # file_setattr
        Refusal([76]),  # truncate; before its ABI 3, Landlock minds neither this nor O_TRUNC
        Refusal([2], when=Argument(1, _O_TRUNC_TO_READ, _O_TRUNC_AND_MODE)),  # open
        Refusal([257], when=Argument(2, _O_TRUNC_TO_READ, _O_TRUNC_AND_MODE)),  # openat
        Refusal([437], errno=ENOSYS),  # openat2, whose flags no filter sees
    ]
