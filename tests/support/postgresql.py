"""A real PostgreSQL, from the system's packages, for tests that need one."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import psutil
import pytest

from tests.support.waiting import eventually

START_TIMEOUT_SECONDS = 60.0


class PostgresqlServer:
    """A throwaway `postgres` that listens on a socket in its own folder, never as root.

    durable: what it has confirmed is on the disk, as where it matters; and slower.
    """

    def __init__(self, programs: Path, folder: Path, *, durable: bool = False) -> None:
        self._programs = programs
        self._folder = folder
        self._durable = durable
        self._user = "postgres" if os.geteuid() == 0 else None
        self._process: subprocess.Popen[bytes] | None = None

    def initialise(self) -> None:
        if self._user is not None:
            shutil.chown(self._folder, self._user)
        self._run(
            "initdb",
            "-D",
            self._data,
            "-A",
            "trust",
            "-U",
            "postgres",
            "--no-sync",
            "--no-locale",
            "-E",
            "UTF8",
        )

    def start(self) -> None:
        terms = ("-c", f"fsync={'on' if self._durable else 'off'}", "-c", "max_connections=50")
        local = ("-k", str(self._folder), "-c", "listen_addresses=")
        self._process = subprocess.Popen(
            [self._programs / "postgres", "-D", self._data, *local, *terms],
            user=self._user,
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while self._process.poll() is None and time.monotonic() < deadline:
            if self._run("pg_isready", "-h", str(self._folder), check=False) == 0:
                return
        raise RuntimeError(f"postgres did not start; exit code {self._process.poll()}")

    def stop(self) -> None:
        """Like a crash: no goodbye to clients."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)  # immediate shutdown, children included
            self._process.wait(timeout=30)
            self._process = None

    def kill(self) -> None:
        """SIGKILL, all of it at once. Returns when all of it is gone: a new start refuses to be beside it."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)  # it begins nobody any more
            family = self._family()
            for process in family:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            self._process.wait(timeout=START_TIMEOUT_SECONDS)
            self._process = None
            assert eventually(lambda: not any(map(_lives, family))), "a process of PostgreSQL survives"

    def freeze(self) -> None:
        for process in self._family():
            process.suspend()

    def thaw(self) -> None:
        for process in self._family():
            process.resume()

    def new_database(self, name: str) -> str:
        """The URL of an empty database."""
        self._run("createdb", "-h", str(self._folder), "-U", "postgres", name)
        return self.url_of(name)

    def url_of(self, name: str) -> str:
        return f"postgresql://postgres@/{name}?host={self._folder}"

    @property
    def _data(self) -> str:
        return str(self._folder / "data")

    def _family(self) -> list[psutil.Process]:
        assert self._process is not None
        server = psutil.Process(self._process.pid)
        return [server, *server.children(recursive=True)]

    def _run(self, program: str, *arguments: str, check: bool = True) -> int:
        done = subprocess.run(
            [self._programs / program, *arguments],
            user=self._user,
            cwd=self._folder,
            capture_output=True,
            timeout=START_TIMEOUT_SECONDS,
            check=check,
        )
        return done.returncode


@contextmanager
def running_postgresql(*, durable: bool = False) -> Iterator[PostgresqlServer]:
    programs = _programs()
    if programs is None:
        _do_without("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    if os.geteuid() == 0 and all(entry.pw_name != "postgres" for entry in pwd.getpwall()):
        _do_without("PostgreSQL refuses to run as root, and there is no user 'postgres'")
    # A socket's path may have 107 characters, and pytest's own folders are closed to other users.
    with tempfile.TemporaryDirectory(prefix="pg_", dir="/tmp") as folder:
        server = PostgresqlServer(programs, Path(folder), durable=durable)
        server.initialise()
        try:
            server.start()
            yield server
        finally:
            server.stop()


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _do_without(why: str) -> NoReturn:
    """A reason to skip on a developer's machine, and to fail where every server has to be there."""
    if os.environ.get("VISIONGATE_TEST_REQUIRE_SERVERS") == "1":
        pytest.fail(why)
    pytest.skip(why)


def _programs() -> Path | None:
    on_path = shutil.which("initdb")
    packaged = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found = [Path(on_path), *packaged] if on_path else packaged
    return found[-1].resolve().parent if found else None
