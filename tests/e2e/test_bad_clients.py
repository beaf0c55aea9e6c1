"""Clients that misbehave on the wire, through HAProxy: refused in time, and the next one is served."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from tests.e2e.conftest import BODY_TIMEOUT_SECONDS
from tests.support.memory import PeakMemory
from tests.support.stack import Stack
from tests.support.waiting import eventually

MEBIBYTE = 1024 * 1024
MOST_BODY_BYTES = 32 * MEBIBYTE  # the default of `max_body_bytes`
JPEG = {"Content-Type": "image/jpeg"}
HEADER_DAWDLERS = 50


@pytest.fixture
def ask(stack: Stack, sample: Path) -> Callable[[], httpx.Response]:
    """A good request, on a connection of its own."""

    def ask_once() -> httpx.Response:
        return httpx.post(
            f"{stack.url}/v1/infer", content=sample.read_bytes(), headers={**stack.bearer, **JPEG}, timeout=20
        )

    return ask_once


@pytest.fixture(autouse=True)
def _the_next_good_request_is_served(ask: Callable[[], httpx.Response]) -> Iterator[None]:
    yield
    assert ask().status_code == 200


def connect(stack: Stack) -> socket.socket:
    address = urlsplit(stack.url)
    return socket.create_connection((address.hostname or "", address.port or 80), timeout=30)


def request_head(stack: Stack, *lines: str) -> bytes:
    head = ["POST /v1/infer HTTP/1.1", "Host: gateway", f"Authorization: {stack.bearer['Authorization']}"]
    return "\r\n".join([*head, "Content-Type: image/jpeg", *lines, "", ""]).encode()


def read_answer(connection: socket.socket) -> tuple[int, dict[str, object]]:
    """Status and problem of an answer with a Content-Length. Raises ConnectionError where there is none."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += _receive(connection)
    head, _, body = received.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    length = int(lengths[0].split(b":")[1])
    while len(body) < length:
        body += _receive(connection)
    return int(head.split()[1]), json.loads(body)


def _receive(connection: socket.socket) -> bytes:
    chunk = connection.recv(65536)
    if not chunk:
        raise ConnectionError("closed without an answer")
    return chunk


def replica(stack: Stack) -> psutil.Process:
    family = psutil.Process(stack.process.pid).children(recursive=True)
    (gateway,) = (child for child in family if "ServeReplica" in " ".join(child.cmdline()[:1]))
    return gateway


def logged_codes(stack: Stack) -> list[str]:
    lines = [json.loads(line) for line in stack.logs().splitlines()]
    return [line["code"] for line in lines if line["event"] == "request"]


def test_a_100_mb_body_is_refused_before_it_is_sent(stack: Stack) -> None:
    with connect(stack) as connection:
        connection.sendall(request_head(stack, f"Content-Length: {100 * MEBIBYTE}"))
        status, problem = read_answer(connection)

    assert (status, problem["code"]) == (413, "payload_too_large")


def test_a_100_mb_chunked_body_is_refused_while_it_is_read(stack: Stack) -> None:
    """We may still be sending when the refusal closes the connection: then only its log line is left."""
    refused_before = logged_codes(stack).count("payload_too_large")
    memory = PeakMemory(replica(stack).pid)
    chunk = b"%x\r\n" % MEBIBYTE + b"\xff" * MEBIBYTE + b"\r\n"
    with connect(stack) as connection:
        connection.sendall(request_head(stack, "Transfer-Encoding: chunked"))
        try:
            for _ in range(100):
                connection.sendall(chunk)
            connection.sendall(b"0\r\n\r\n")
            status, problem = read_answer(connection)
        except ConnectionError:
            pass
        else:
            assert (status, problem["code"]) == (413, "payload_too_large")

    assert eventually(lambda: logged_codes(stack).count("payload_too_large") == refused_before + 1)
    assert memory.growth_bytes() < 2 * MOST_BODY_BYTES


def test_a_client_that_dawdles_over_its_body_is_refused(stack: Stack) -> None:
    begin = time.monotonic()
    with connect(stack) as connection:
        connection.sendall(request_head(stack, "Content-Length: 1000") + b"\xff\xd8")
        status, problem = read_answer(connection)

    assert (status, problem["code"]) == (504, "timeout")
    assert time.monotonic() - begin < BODY_TIMEOUT_SECONDS + 5


def test_clients_that_dawdle_over_their_headers_keep_nobody_waiting(
    stack: Stack, ask: Callable[[], httpx.Response]
) -> None:
    with ExitStack() as connections:
        for _ in range(HEADER_DAWDLERS):
            dawdler = connections.enter_context(connect(stack))
            dawdler.sendall(b"POST /v1/infer HTTP/1.1\r\nHost: gateway\r\nAuthoriz")
        begin = time.monotonic()
        response = ask()
        waited_seconds = time.monotonic() - begin

    assert response.status_code == 200
    assert waited_seconds < 5


def test_clients_that_hang_up_leave_nothing_behind(stack: Stack, sample: Path) -> None:
    """Each group hangs up only once the gateway has taken it in: HAProxy may drop whoever leaves before."""
    body = sample.read_bytes()
    for sent in (0, len(body) // 2, len(body)):
        answered_before = _metric(stack, "visiongate_http_requests_total")
        with ExitStack() as open_connections:
            for _ in range(5):
                connection = open_connections.enter_context(connect(stack))
                connection.sendall(request_head(stack, f"Content-Length: {len(body)}") + body[:sent])
            assert eventually(partial(_has_taken_in, 5, stack, answered_before))

    assert eventually(lambda: _metric(stack, "visiongate_requests_in_flight") == 0)
    assert _metric(stack, "visiongate_held_body_bytes") == 0


def _has_taken_in(requests: int, stack: Stack, answered_before: float) -> bool:
    answered = _metric(stack, "visiongate_http_requests_total") - answered_before
    return answered + _metric(stack, "visiongate_requests_in_flight") >= requests


def _metric(stack: Stack, name: str) -> float:
    """The sum over all labels."""
    exposed = httpx.get(str(stack.described["metrics_url"])).text
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", exposed, re.MULTILINE))
