from __future__ import annotations

import socket
from contextlib import ExitStack

import httpx
import psutil
import pytest
from prometheus_client import CollectorRegistry

from serving.adapters.prometheus import PORT_TRIES, serve_metrics
from serving.errors import OperatorError
from serving.metrics import Metrics
from tests.support.ports import free_ports


def registry() -> CollectorRegistry:
    """As one replica has it."""
    return Metrics(CollectorRegistry()).registry


def exposed(port: int) -> str:
    return httpx.get(f"http://127.0.0.1:{port}/metrics").raise_for_status().text


def test_each_replica_takes_the_next_free_port_and_gives_it_back() -> None:
    (first_port,) = free_ports(1)
    with ExitStack() as replicas:
        for _ in range(3):
            replicas.callback(serve_metrics(registry(), first_port=first_port))
        texts = [exposed(first_port + offset) for offset in range(3)]
    with ExitStack() as replicas:
        replicas.callback(serve_metrics(registry(), first_port=first_port))
        texts.append(exposed(first_port))

    for name in ("visiongate_http_requests_total", "process_resident_memory_bytes", "python_info"):
        assert all(name in text for text in texts)


def test_it_listens_on_the_loopback_interface_only() -> None:
    (port,) = free_ports(1)
    stop = serve_metrics(registry(), first_port=port)
    try:
        connections = psutil.Process().net_connections("inet")
    finally:
        stop()

    listeners = [
        each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN and each.laddr.port == port
    ]
    assert listeners == ["127.0.0.1"]


def test_with_no_free_port_it_says_which_it_tried() -> None:
    (first_port,) = free_ports(1)
    last_port = first_port + PORT_TRIES - 1
    with ExitStack() as others:
        for port in range(first_port, last_port + 1):
            listener = others.enter_context(socket.socket())
            if listener.connect_ex(("127.0.0.1", port)) != 0:
                others.enter_context(socket.create_server(("127.0.0.1", port)))

        with pytest.raises(OperatorError, match=f"from {first_port} to {last_port}"):
            serve_metrics(registry(), first_port=first_port)
