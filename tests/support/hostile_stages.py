"""What a checkpoint could do if it ran code: stages that do harm instead of their work, as a plan says.

Copied into an export environment of its own (tests/integration/export_pipeline/conftest.py), in the place of
the real stages; the "checkpoint" is the plan: `{"inspect": ["reach", {…}], "export_graph": ["finish", {}]}`.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from export_pipeline import errors
from export_pipeline.job import JobFolder, JobRecord
from export_pipeline.progress import Say

LIBC = ctypes.CDLL(None, use_errno=True)
MEBIBYTE = 1024**2


def inspect(folder: JobFolder, _record: JobRecord, say: Say) -> None:
    _follow_plan("inspect", folder, say, lambda text: folder.write("checkpoint.json", text.encode()))


def export_graph(folder: JobFolder, _record: JobRecord, say: Say) -> None:
    _follow_plan("export_graph", folder, say, lambda text: folder.write("model/model.onnx", text.encode()))


def _follow_plan(step: str, folder: JobFolder, say: Say, leave: Callable[[str], object]) -> None:
    deed, arguments = json.loads(folder.checkpoint_file.read_text()).get(step, ["finish", {}])
    say(f"about to {deed}")
    leave(json.dumps(DEEDS[deed](folder, **arguments)))


def finish(_folder: JobFolder) -> str:
    return "done"


# --- reaching out: each attempt either raises, or has succeeded ---------------------------------------------


def reach(folder: JobFolder, **places: Any) -> dict[str, str]:
    """Every attempt, by name: "succeeded", or why not."""
    outcomes = {}
    for name, attempt in REACHES.items():
        try:
            attempt(folder, places)
            outcomes[name] = "succeeded"
        except (OSError, ValueError) as exc:
            outcomes[name] = f"{type(exc).__name__}: {exc}"
    return outcomes


def _checked(result: int) -> int:
    """Of a call into the C library."""
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _connect(family: int, kind: int, address: Any) -> None:
    with socket.socket(family, kind) as client:
        client.settimeout(5.0)
        client.connect(address)
        client.send(b"hello")


def _bind(_folder: JobFolder, _places: dict[str, Any]) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()


def _write(path: str) -> None:
    Path(path).write_text("written by a checkpoint")


def _list(path: str | Path) -> list[str]:
    return sorted(each.name for each in Path(path).iterdir())


def _append(path: str) -> None:
    with Path(path).open("a") as file:
        file.write("written by a checkpoint")


def _daemon(_folder: JobFolder, places: dict[str, Any]) -> None:
    """Double fork and a session of its own; it says who it is and stays."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.write(writing, str(os.getpid()).encode())
            os.close(writing)
            while True:
                signal.pause()
        os._exit(0)
    os.close(writing)
    Path(places["daemon_pid_file"]).write_bytes(os.read(reading, 32))


def _trace(_folder: JobFolder, places: dict[str, Any]) -> None:
    attach, detach = 16, 17
    _checked(LIBC.ptrace(attach, places["victim"], None, None))
    os.waitpid(places["victim"], 0x40000000)
    LIBC.ptrace(detach, places["victim"], None, None)


def _read_process_memory(_folder: JobFolder, places: dict[str, Any]) -> None:
    _read_start = int(Path(f"/proc/{places['victim']}/maps").read_text().split("-")[0], 16)
    with Path(f"/proc/{places['victim']}/mem").open("rb", buffering=0) as memory:
        memory.seek(_read_start)
        memory.read(16)


def _shared_memory_segment(_folder: JobFolder, _places: dict[str, Any]) -> None:
    remove = 0
    _checked(LIBC.shmctl(_checked(LIBC.shmget(0, 4096, 0o1600)), remove, None))


def _memory_file(_folder: JobFolder, _places: dict[str, Any]) -> None:
    os.close(os.memfd_create("nobody's"))


def _capability(_folder: JobFolder, _places: dict[str, Any]) -> None:
    status = Path("/proc/self/status").read_text()
    if int(status.partition("CapPrm:")[2].split()[0], 16) == 0:
        raise PermissionError("no capabilities")


def _user_namespace(_folder: JobFolder, _places: dict[str, Any]) -> None:
    clone_newuts = 0x04000000 if os.geteuid() == 0 else 0x10000000
    _checked(LIBC.unshare(clone_newuts))


def _start_program(_folder: JobFolder, _places: dict[str, Any]) -> None:
    os.posix_spawn("/bin/true", ["true"], {})
    os.wait()


def _io_uring(_folder: JobFolder, _places: dict[str, Any]) -> None:
    setup = 425
    parameters = ctypes.create_string_buffer(120)
    os.close(_checked(LIBC.syscall(setup, 1, parameters)))


def _watch_files(_folder: JobFolder, places: dict[str, Any]) -> None:
    queue = _checked(LIBC.inotify_init())
    try:
        _checked(LIBC.inotify_add_watch(queue, places["repository"].encode(), 0x100))
    finally:
        os.close(queue)


def _limit_of_another(_folder: JobFolder, places: dict[str, Any]) -> None:
    resource.prlimit(places["victim"], resource.RLIMIT_NOFILE, (64, 64))


def _mode_of_another(_folder: JobFolder, places: dict[str, Any]) -> None:
    Path(places["secret"]).chmod(0o644)
    if Path(places["secret"]).stat().st_mode & 0o777 != 0o644:
        raise PermissionError("the mode is what it was")


Reach = Callable[[JobFolder, dict[str, Any]], object]
REACHES: dict[str, Reach] = {
    "read a secret of a neighbour": lambda _f, at: Path(at["secret"]).read_text(),
    "list the folder of a neighbour": lambda _f, at: _list(Path(at["secret"]).parent),
    "list the model repository": lambda _f, at: _list(at["repository"]),
    "write into the model repository": lambda _f, at: _write(at["repository"] + "/planted.onnx"),
    "overwrite a model": lambda _f, at: _append(at["model"]),
    "empty a model": lambda _f, at: os.truncate(at["model"], 0),
    "take a model away": lambda f, at: Path(at["model_to_take"]).rename(f.path / "taken"),
    "empty its own input": lambda f, _at: os.close(os.open(f.checkpoint_file, os.O_TRUNC)),
    "overwrite its own input": lambda f, _at: _append(str(f.checkpoint_file)),
    "overwrite the package": lambda _f, at: _append(at["package"] + "/errors.py"),
    "overwrite the environment": lambda _f, at: _write(at["site_packages"] + "/planted.pth"),
    "overwrite the job's request": lambda f, _at: _append(str(f.path.parent / "job.json")),
    "plant a file in the job's folder": lambda f, _at: _write(str(f.path.parent / "validation.json")),
    "change the mode of a secret": _mode_of_another,
    "give a secret away": lambda _f, at: os.chown(at["secret"], os.geteuid(), os.getegid()),
    "leave a symbolic link": lambda f, _at: (f.path / "link").symlink_to("/etc/passwd"),
    "link a secret into its folder": lambda f, at: os.link(at["secret"], f.path / "hard_link"),
    "leave a pipe": lambda f, _at: os.mkfifo(f.path / "pipe"),
    "read the system's secrets": lambda _f, _at: Path("/etc/shadow").read_text(),
    "write into /tmp": lambda _f, at: _write(at["outside"]),
    "write into shared memory": lambda _f, at: _write("/dev/shm/" + at["token"]),
    "see other processes": lambda _f, _at: _list("/proc"),
    "read a process's environment": lambda _f, at: Path(f"/proc/{at['victim']}/environ").read_bytes(),
    "read a process's command line": lambda _f, at: Path(f"/proc/{at['victim']}/cmdline").read_bytes(),
    "read a process's memory": _read_process_memory,
    "trace a process": _trace,
    "signal a process": lambda _f, at: os.kill(at["victim"], 0),
    "signal its group": lambda _f, _at: os.killpg(0, 0),
    "limit a process": _limit_of_another,
    "slow a process down": lambda _f, at: os.setpriority(os.PRIO_PROCESS, at["victim"], 5),
    "connect by TCP": lambda _f, at: _connect(socket.AF_INET, socket.SOCK_STREAM, tuple(at["tcp"])),
    "send by UDP": lambda _f, at: _connect(socket.AF_INET, socket.SOCK_DGRAM, tuple(at["tcp"])),
    "connect by a socket in a folder": lambda _f, at: _connect(1, socket.SOCK_STREAM, at["unix"]),
    "connect by a socket without a name": lambda _f, at: _connect(1, socket.SOCK_STREAM, "\0" + at["token"]),
    "listen on a port": _bind,
    "leave a daemon": _daemon,
    "start a program": _start_program,
    "enter a namespace": _user_namespace,
    "use io_uring": _io_uring,
    "keep memory in a segment": _shared_memory_segment,
    "keep memory in a file without a name": _memory_file,
    "watch a folder": _watch_files,
    "have a capability": _capability,
}


# --- what honest work needs --------------------------------------------------------------------------------


def work_honestly(folder: JobFolder, **places: Any) -> dict[str, Any]:
    ran: list[str] = []
    thread = threading.Thread(target=lambda: ran.append("thread"))
    thread.start()
    thread.join()
    with ThreadPool(2) as pool:
        ran += pool.map(str.upper, ["pool"])
    temporary = Path(os.environ["TMPDIR"]) / "kept"
    temporary.write_text("a")
    temporary.rename(folder.path / "renamed")
    (folder.path / "renamed").chmod(0o600)
    (folder.path / "renamed").unlink()
    with Path(os.devnull).open("w") as null:
        null.write("nothing")
    return {
        "threads": ran,
        "pictures": _list(places["pictures"]),
        "environment": dict(os.environ),
        "cores": os.cpu_count(),
        "random": len(os.urandom(8)),
        "limits": [resource.getrlimit(which)[0] for which in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE)],
        "own_entry": Path("/proc/self/status").read_text().startswith("Name:"),
    }


# --- using everything up, and ending badly -----------------------------------------------------------------


def fill_memory(_folder: JobFolder) -> None:
    kept = []
    while True:
        kept.append(b"x" * (16 * MEBIBYTE))


def fill_shared_memory(_folder: JobFolder) -> None:
    kept = []
    while True:
        kept.append(mmap.mmap(-1, 16 * MEBIBYTE))
        kept[-1].write(b"x" * (16 * MEBIBYTE))


def want_too_much_at_once(_folder: JobFolder) -> None:
    bytearray(1 << 40)


def run_for_ever(_folder: JobFolder) -> None:
    while True:
        signal.pause()


def leave_a_daemon_and_run_for_ever(folder: JobFolder, **places: Any) -> None:
    _daemon(folder, places)
    Path(places["own_pid_file"]).write_text(str(os.getpid()))
    run_for_ever(folder)


def write_an_endless_file(folder: JobFolder) -> None:
    with (folder.path / "endless").open("wb") as file:
        while True:
            file.write(bytes(16 * MEBIBYTE))


def _event_pipe() -> int:
    """The first pipe that is not the log."""
    log = os.fstat(2).st_ino
    for number in range(3, 64):
        with contextlib.suppress(OSError):
            found = os.fstat(number)
            if found.st_mode & 0o170000 == 0o010000 and found.st_ino != log:
                return number
    raise AssertionError("there is no pipe for events")


def say_an_endless_line(_folder: JobFolder) -> None:
    pipe = _event_pipe()
    while True:
        os.write(pipe, b"x" * 4096)


def say(_folder: JobFolder, line: str) -> None:
    os.write(_event_pipe(), line.encode() + b"\n")
    run_for_ever(_folder)


def fill_the_log(_folder: JobFolder, megabytes: int) -> str:
    for _ in range(megabytes):
        sys.stdout.write("y" * MEBIBYTE)
        sys.stderr.write("\x1b[2J the end\n")
    return "done"


def crash(_folder: JobFolder) -> None:
    sys.stderr.write("about to crash\n")
    sys.stderr.flush()
    ctypes.string_at(0)


def kill_itself(_folder: JobFolder) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def exit_with(_folder: JobFolder, code: int) -> None:
    os._exit(code)


def fail_with(_folder: JobFolder, error: str) -> None:
    raise getattr(errors, error)(f"what {error} says")


def interrupt_itself(_folder: JobFolder) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()


def change_the_result_before(folder: JobFolder) -> str:
    _append(str(folder.path / "checkpoint.json"))
    return "done"


def leave_a_link(folder: JobFolder) -> str:
    (folder.path / "model").mkdir()
    (folder.path / "model" / "model.json").symlink_to("/etc/passwd")
    return "done"


def leave_deep_folders(folder: JobFolder) -> None:
    """Deeper than Python recurses, and shut at the end, among its results and elsewhere."""
    for result in (folder.path / "model", folder.path / ".private" / "deep"):
        result.mkdir()
        place = os.open(result, os.O_RDONLY)
        for _ in range(1500):
            os.mkdir("inner", dir_fd=place)
            deeper = os.open("inner", os.O_RDONLY, dir_fd=place)
            os.close(place)
            place = deeper
        os.mkdir("shut", 0o000, dir_fd=place)
        os.close(place)
    say(folder, '{"step": "export.graph", "kind": "done"}')


DEEDS: dict[str, Callable[..., Any]] = {
    each.__name__: each
    for each in (
        finish,
        reach,
        work_honestly,
        fill_memory,
        fill_shared_memory,
        want_too_much_at_once,
        run_for_ever,
        leave_a_daemon_and_run_for_ever,
        write_an_endless_file,
        say_an_endless_line,
        say,
        fill_the_log,
        crash,
        kill_itself,
        exit_with,
        fail_with,
        interrupt_itself,
        change_the_result_before,
        leave_a_link,
        leave_deep_folders,
    )
}
