"""Clients that misbehave on the wire, through HAProxy: refused in time, and the next one is served."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from tests.e2e.conftest import BODY_TIMEOUT_SECONDS
from tests.support.stack import Stack

MEBIBYTE = 1024 * 1024
JPEG = {"Content-Type": "image/jpeg"}


@pytest.fixture(autouse=True)
def _the_next_good_request_is_served(stack: Stack, sample: Path) -> Iterator[None]:
    yield
    response = httpx.post(
        f"{stack.url}/v1/infer", content=sample.read_bytes(), headers={**stack.bearer, **JPEG}, timeout=20
    )
    assert response.status_code == 200


def connect(stack: Stack) -> socket.socket:
    address = urlsplit(stack.url)
    return socket.create_connection((address.hostname or "", address.port or 80), timeout=30)


def request_head(stack: Stack, *lines: str) -> bytes:
    head = ["POST /v1/infer HTTP/1.1", "Host: gateway", f"Authorization: {stack.bearer['Authorization']}"]
    return "\r\n".join([*head, "Content-Type: image/jpeg", *lines, "", ""]).encode()


def read_answer(connection: socket.socket) -> tuple[int, dict[str, object]]:
    """Status and problem of an answer whose connection the server closes, or that has a Content-Length."""
    received = b""
    while b"\r\n\r\n" not in received:
        chunk = connection.recv(65536)
        assert chunk, f"no answer, only {received!r}"
        received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    length = int(lengths[0].split(b":")[1])
    while len(body) < length:
        body += connection.recv(65536)
    return int(head.split()[1]), json.loads(body)


def replica_memory_bytes(stack: Stack) -> int:
    """The largest gateway replica's resident memory."""
    family = psutil.Process(stack.process.pid).children(recursive=True)
    return max(child.memory_info().rss for child in family if "Gateway" in " ".join(child.cmdline()[:1]))


def test_a_100_mb_body_is_refused_before_it_is_sent(stack: Stack) -> None:
    with connect(stack) as connection:
        connection.sendall(request_head(stack, f"Content-Length: {100 * MEBIBYTE}"))
        status, problem = read_answer(connection)

    assert (status, problem["code"]) == (413, "payload_too_large")


def test_a_100_mb_chunked_body_is_refused_while_it_is_read(stack: Stack) -> None:
    before = replica_memory_bytes(stack)
    chunk = b"%x\r\n" % MEBIBYTE + b"\xff" * MEBIBYTE + b"\r\n"
    with connect(stack) as connection:
        connection.sendall(request_head(stack, "Transfer-Encoding: chunked"))
        sent = 0
        try:
            while sent < 100:
                connection.sendall(chunk)
                sent += 1
        except OSError:
            pass  # refused and closed while we were still sending
        try:
            status, problem = read_answer(connection)
            assert (status, problem["code"]) == (413, "payload_too_large")
        except (ConnectionResetError, BrokenPipeError):
            assert sent < 100

    assert replica_memory_bytes(stack) - before < 100 * MEBIBYTE


def test_a_client_that_dawdles_over_its_body_is_refused(stack: Stack) -> None:
    begin = time.monotonic()
    with connect(stack) as connection:
        connection.sendall(request_head(stack, "Content-Length: 1000") + b"\xff\xd8")
        status, problem = read_answer(connection)

    assert (status, problem["code"]) == (504, "timeout")
    assert time.monotonic() - begin < BODY_TIMEOUT_SECONDS + 5


def test_clients_that_hang_up_leave_nothing_behind(stack: Stack, sample: Path) -> None:
    body = sample.read_bytes()
    for sent in (0, len(body) // 2, len(body)):
        for _ in range(5):
            with connect(stack) as connection:
                connection.sendall(request_head(stack, f"Content-Length: {len(body)}") + body[:sent])

    give_up = time.monotonic() + 10
    while (held := _metric(stack, "visiongate_held_body_bytes")) and time.monotonic() < give_up:
        time.sleep(0.05)
    assert held == 0


def _metric(stack: Stack, name: str) -> float:
    lines = httpx.get(str(stack.described["metrics_url"])).text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))
