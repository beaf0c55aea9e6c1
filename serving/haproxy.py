"""Starts HAProxy with what Ray Serve's configuration of it leaves open.

Ray renders HAProxy's configuration from a template without hooks, but lets us name the program to start. So
it starts this file (see `install`), which edits the configuration and becomes HAProxy:

- its metrics and statistics listen on loopback, not on every interface without a password;
- a client has seconds, not for ever, for its headers, and a connection that waits for them is closed;
- headers by which Ray lets a client choose its own timeout or its request id are dropped on the way in;
- what HAProxy answers by itself (no replica is up, say) is one of our problem details and not plain text;
- HAProxy dies with the Ray actor that started it, however that ends.

An anchor that is not found is an error: a new Ray with another template is noticed at its first start.
Run in isolation from site-packages: the standard library only.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shlex
import signal
import sys
from pathlib import Path

HEADER_TIMEOUT_SECONDS = 10
DROPPED_HEADERS = (
    "x-request-id",
    "x-request-timeout-seconds",
    "x-request-disconnect-disabled",
    "x-session-id",
    "serve_multiplexed_model_id",
)
_PR_SET_PDEATHSIG = 1
_UNAVAILABLE: dict[str, str | int] = {
    "type": "about:blank",
    "title": "Inference server unavailable",
    "status": 503,
    "detail": "No gateway process is up at the moment.",
    "instance": "/",
    "code": "backend_unavailable",
}
_TOO_SLOW = _UNAVAILABLE | {
    "title": "Deadline exceeded",
    "status": 504,
    "detail": "The request took longer than allowed.",
    "code": "timeout",
}


def install(folder: Path, haproxy: str) -> Path:
    """Write a program into `folder` that starts `haproxy` through this file."""
    program = folder / "haproxy"
    command = shlex.join([sys.executable, "-I", "-S", __file__, haproxy])
    program.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    program.chmod(0o700)
    return program


def hardened(configuration: str) -> str:
    """Raises ValueError, naming the rule, where the configuration is not of the form we know."""
    edits = {
        r"(?m)^(frontend prometheus\n +bind )(:\d+)$": r"\g<1>127.0.0.1\g<2>",
        r"(?m)^(listen stats\n +bind )\*(:\d+)$": r"\g<1>127.0.0.1\g<2>",
        r"(?m)^(defaults\n +mode http)$": rf"\g<1>\n    timeout http-request {HEADER_TIMEOUT_SECONDS}s",
        r"(?m)^( +errorfile 502 .*)$": _answer(502, _UNAVAILABLE),
        r"(?m)^( +errorfile 503 .*)$": _answer(503, _UNAVAILABLE),
        r"(?m)^( +errorfile 504 .*)$": _answer(504, _TOO_SLOW),
        r"(?m)^(frontend http_frontend\n +bind .*)$": r"\g<1>\n" + "\n".join(_frontend_rules()),
    }
    for pattern, replacement in edits.items():
        configuration, count = re.subn(pattern, replacement, configuration)
        if count != 1:
            raise ValueError(f"HAProxy's configuration has {count} places like {pattern!r}, not one")
    return configuration


def _frontend_rules() -> list[str]:
    dropped = [f"    http-request del-header {name}" for name in DROPPED_HEADERS]
    # Ray adds an id of its own behind ours.
    first = "%[res.hdr(X-Request-ID,1)] if { res.hdr_cnt(X-Request-ID) gt 1 }"
    return [*dropped, f"    http-response set-header X-Request-ID {first}"]


def _answer(status: int, problem: dict[str, str | int]) -> str:
    """HAProxy's line for a status of its own; `%[uuid()]` becomes the request id."""
    body = json.dumps(problem)[:-1] + ', "request_id": "%[uuid()]"}'
    quoted = body.replace("\\", "\\\\").replace('"', '\\"').replace(" ", "\\ ")
    line = f"    http-error status {status} content-type application/problem+json lf-string {quoted}"
    if problem["status"] == 503:
        line += ' hdr Retry-After "1"'
    return line.replace("\\", "\\\\")  # it is the replacement of a regular expression


def main() -> None:
    haproxy, *arguments = sys.argv[1:]
    path = Path(arguments[arguments.index("-f") + 1])
    path.write_text(hardened(path.read_text()))
    # The actor's event loop started us, in a thread that lives as long as the actor.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.execv(haproxy, [haproxy, *arguments])  # noqa: S606 - HAProxy itself, with Ray's own arguments


if __name__ == "__main__":
    main()
