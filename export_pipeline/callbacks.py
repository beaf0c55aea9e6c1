"""Reports of a job to whoever asked for them: POST {CALLBACK_URL}/started, /progress, /completion.

The process that works has no sockets and may not know the token, so another reports for it: this one starts
it, without CALLBACK_… in its environment, passes its events on, and ends as it ends::

    caller ◄── events ── worker that reports ◄── events ── worker that works, confined
                               └── HTTP, bearer token ──► CALLBACK_URL

A report that does not arrive is told on stderr, and is never a reason to fail.
"""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import IO, Any, Final, cast
from urllib.error import HTTPError
from urllib.parse import urlsplit

from export_pipeline.errors import BadInput

REQUEST_TIMEOUT_SECONDS: Final = 5.0
RETRY_AFTER_SECONDS: Final = (0.5, 1.0, 2.0)
MAX_LINE_BYTES: Final = 65_536
_MAX_WAITING_PROGRESS = 8

Report = tuple[str, dict[str, Any]]
"""The last part of the address, and what is sent there."""


def wanted(environment: Mapping[str, str]) -> bool:
    return bool(environment.get("CALLBACK_URL"))


def run_reported(argv: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a worker and report on it. Return its exit status, as a shell counts it."""
    reporter = Reporter(
        environment["CALLBACK_URL"], environment.get("CALLBACK_TOKEN", ""), environment.get("JOB_ID", "")
    )
    worker = subprocess.Popen(  # noqa: S603 - our own worker, as a list
        argv,
        env={name: value for name, value in environment.items() if not name.startswith("CALLBACK_")},
        stdout=subprocess.PIPE,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: worker.terminate())
    with reporter:
        error = _pass_on(cast("IO[bytes]", worker.stdout), reporter)
        status = worker.wait()
        code = status if status >= 0 else 128 - status
        reporter.finish({"exit_code": code, "error": error})
    return code


class Reporter:
    """Sends reports in the order they are given, from a thread of its own; drops progress it has no time for.

    wait: sleeps so many seconds. Raises BadInput for an address that is not HTTP's.
    """

    def __init__(
        self, url: str, token: str, job_id: str, *, wait: Callable[[float], object] | None = None
    ) -> None:
        if urlsplit(url).scheme not in {"http", "https"}:
            raise BadInput("CALLBACK_URL has to begin with http:// or https://.")
        self._url = url.rstrip("/")
        self._token = token
        self._job_id = job_id
        self._wait = wait or threading.Event().wait
        self._waiting: queue.Queue[Report | None] = queue.Queue()
        self._opener = urllib.request.build_opener(_NoRedirects)
        self._thread = threading.Thread(target=self._send_all, name="callbacks", daemon=True)

    def __enter__(self) -> Reporter:
        self._waiting.put(("started", {}))
        self._thread.start()
        return self

    def progress(self, event: dict[str, Any]) -> None:
        if self._waiting.qsize() < _MAX_WAITING_PROGRESS:
            self._waiting.put(("progress", event))

    def finish(self, outcome: dict[str, Any]) -> None:
        self._waiting.put(("completion", outcome))

    def __exit__(self, *_: object) -> None:
        """Return when everything was sent, or given up."""
        self._waiting.put(None)
        self._thread.join()

    def _send_all(self) -> None:
        while (report := self._waiting.get()) is not None:
            self._send(*report)

    def _send(self, what: str, body: dict[str, Any]) -> None:
        # Only what comes but once is worth trying again: the next progress is on its way.
        pauses = iter(() if what == "progress" else RETRY_AFTER_SECONDS)
        while (failure := self._post(what, body)) is not None:
            pause = next(pauses, None)
            if pause is None or failure.is_final:
                print(f"The callback /{what} did not arrive: {failure.reason}.", file=sys.stderr)  # noqa: T201 - the log
                return
            self._wait(pause)

    def _post(self, what: str, body: dict[str, Any]) -> _Failure | None:
        request = urllib.request.Request(  # noqa: S310 - the scheme was looked at
            f"{self._url}/{what}",
            data=json.dumps({"job_id": self._job_id, **body}).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {self._token}"},
            method="POST",
        )
        try:
            with self._opener.open(request, timeout=REQUEST_TIMEOUT_SECONDS):
                return None
        except HTTPError as exc:
            return _Failure(f"status {exc.code}", is_final=exc.code < 500)
        except (OSError, HTTPException, ValueError) as exc:
            return _Failure(type(exc).__name__, is_final=False)


@dataclass(frozen=True, slots=True)
class _Failure:
    reason: str
    is_final: bool


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the token to whomever it names."""

    def redirect_request(self, *_: object, **__: object) -> None:
        return None


def _pass_on(lines: IO[bytes], reporter: Reporter) -> str | None:
    """Each line to our own stdout, each event to the reporter; the error's sentence, if one came."""
    error = None
    while line := lines.readline(MAX_LINE_BYTES):
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
        with contextlib.suppress(ValueError, RecursionError):
            values = json.loads(line)
            if isinstance(values, dict) and "error" in values:
                error = str(values["error"])
            elif isinstance(values, dict):
                reporter.progress(values)
    return error
