"""Answers Prometheus, on loopback, beside the gateway and not through it."""

from __future__ import annotations

from collections.abc import Callable
from errno import EADDRINUSE

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, start_http_server

from serving.errors import OperatorError

PORT_TRIES = 32
LOOPBACK = "127.0.0.1"


def serve_metrics(registry: CollectorRegistry, *, first_port: int) -> Callable[[], None]:
    """On the first free port, since several replicas share a node. Returns what stops it."""
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    for port in range(first_port, first_port + PORT_TRIES):
        try:
            return _serve(registry, port)
        except OSError as exc:
            if exc.errno != EADDRINUSE:
                raise
    raise OperatorError(
        f"There is no free port for metrics from {first_port} to {first_port + PORT_TRIES - 1}."
    )


def _serve(registry: CollectorRegistry, port: int) -> Callable[[], None]:
    server, thread = start_http_server(port, addr=LOOPBACK, registry=registry)

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop
