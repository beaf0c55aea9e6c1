"""Reports over real HTTP, to a server that answers as it is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from export_pipeline import callbacks
from export_pipeline.callbacks import RETRY_AFTER_SECONDS, Reporter
from export_pipeline.errors import BadInput
from tests.support.ports import free_ports

TOKEN = "t0ken"
WORKER = """
import json, os
print(json.dumps({"step": "a.b", "kind": "began"}), flush=True)
print(json.dumps(sorted(name for name in os.environ if name.startswith("CALLBACK"))), flush=True)
print(json.dumps({"error": "no room"}), flush=True)
os._exit(3)
"""
RUN_REPORTED = """
import os, sys
from export_pipeline.callbacks import run_reported
sys.exit(run_reported([sys.executable, "-c", sys.argv[1]], os.environ))
"""


@dataclass
class Listener:
    """statuses: the next answers; 200 when there are no more. calls: path, token and body of each request."""

    url: str = ""
    statuses: list[int] = field(default_factory=list)
    calls: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)

    def paths(self) -> list[str]:
        return [path for path, _, _ in self.calls]


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            listener.calls.append((self.path, self.headers["Authorization"], body))
            status = listener.statuses.pop(0) if listener.statuses else 200
            self.send_response(status)
            if status == 302:
                self.send_header("Location", f"{listener.url}/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        listener.url = f"http://127.0.0.1:{server.server_port}/hook"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield listener
        server.shutdown()
        thread.join()


def run_reported(url: str, worker: str = WORKER) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", RUN_REPORTED, worker],
        env={"CALLBACK_URL": url, "CALLBACK_TOKEN": TOKEN, "JOB_ID": "4711"},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_worker_is_reported_from_start_to_end(listener: Listener) -> None:
    ended = run_reported(listener.url + "/")

    assert ended.returncode == 3
    assert [json.loads(line) for line in ended.stdout.splitlines()] == [
        {"step": "a.b", "kind": "began"},
        [],
        {"error": "no room"},
    ]
    assert listener.calls == [
        ("/hook/started", f"Bearer {TOKEN}", {"job_id": "4711"}),
        ("/hook/progress", f"Bearer {TOKEN}", {"job_id": "4711", "step": "a.b", "kind": "began"}),
        ("/hook/completion", f"Bearer {TOKEN}", {"job_id": "4711", "exit_code": 3, "error": "no room"}),
    ]


def test_a_worker_that_is_killed_is_reported(listener: Listener) -> None:
    ended = run_reported(listener.url, "import os; os.kill(os.getpid(), 9)")

    assert ended.returncode == 137
    assert listener.calls[-1][2] == {"job_id": "4711", "exit_code": 137, "error": None}


def test_a_listener_who_refuses_is_no_failure(listener: Listener) -> None:
    listener.statuses = [401, 401, 401]

    ended = run_reported(listener.url)

    assert ended.returncode == 3
    assert "The callback /completion did not arrive: status 401." in ended.stderr
    assert TOKEN not in ended.stderr + ended.stdout


def test_nobody_who_listens_is_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    (port,) = free_ports(1)
    pauses: list[float] = []

    with Reporter(f"http://127.0.0.1:{port}", TOKEN, "4711", wait=pauses.append):
        pass

    assert tuple(pauses) == RETRY_AFTER_SECONDS
    assert "The callback /started did not arrive: URLError." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("statuses", "waited", "told"),
    [
        ([500, 503], RETRY_AFTER_SECONDS[:2], ""),
        ([500] * 4, RETRY_AFTER_SECONDS, "/started did not arrive: status 500."),
        ([403], (), "/started did not arrive: status 403."),
        ([302], (), "/started did not arrive: status 302."),
    ],
)
def test_what_comes_but_once_is_tried_again(
    statuses: list[int],
    waited: tuple[float, ...],
    told: str,
    listener: Listener,
    capsys: pytest.CaptureFixture[str],
) -> None:
    listener.statuses = statuses
    pauses: list[float] = []

    with Reporter(listener.url, TOKEN, "4711", wait=pauses.append):
        pass

    assert listener.paths() == ["/hook/started"] * (1 + len(waited))
    assert tuple(pauses) == waited
    assert told in capsys.readouterr().err


def refuse_to_wait(_seconds: float) -> None:
    raise AssertionError("it waited")


def test_progress_is_not_tried_again(listener: Listener) -> None:
    listener.statuses = [200, 500]

    with Reporter(listener.url, TOKEN, "4711", wait=refuse_to_wait) as reporter:
        reporter.progress({"step": "a.b"})
        reporter.finish({"exit_code": 0, "error": None})

    assert listener.paths() == ["/hook/started", "/hook/progress", "/hook/completion"]


def test_progress_that_is_too_much_is_dropped_and_the_end_is_not(listener: Listener) -> None:
    with Reporter(listener.url, TOKEN, "4711") as reporter:
        for number in range(1000):
            reporter.progress({"step": str(number)})
        reporter.finish({"exit_code": 0, "error": None})

    assert listener.paths()[-1] == "/hook/completion"
    assert len(listener.calls) < 1000


@pytest.mark.parametrize("url", ["file:///etc/passwd", "host/hook", "ftp://host"])
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(BadInput, match="CALLBACK_URL"):
        Reporter(url, TOKEN, "4711")


def test_only_who_asks_is_told() -> None:
    assert callbacks.wanted({"CALLBACK_URL": "http://host"})
    assert not callbacks.wanted({"CALLBACK_URL": ""})
    assert not callbacks.wanted({name: value for name, value in os.environ.items() if "CALLBACK" not in name})
