"""Every setting of the gateway: one class, one prefix (`VISIONGATE_`), read once at start.

A setting comes from the environment variable of its name (`port` is `VISIONGATE_PORT`). Only the command
line and the composition root read this class; everything else is handed what it needs.
"""

from __future__ import annotations

import json
import os
import secrets
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from serving.errors import OperatorError

Port = Annotated[int, Field(ge=1, le=65535)]
Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]

MEBIBYTE = 1024 * 1024
MAX_REDIS_TIMEOUT_SECONDS = 1.0
"""Who waits for Redis and then for the journal still has its lease, which lasts `LEASE_GRACE_SECONDS`."""
KEPT_SECRETS = ("key_hash_secret", "admin_token", "ray_token")


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="VISIONGATE_", extra="ignore", frozen=True, use_attribute_docstrings=True
    )

    host: str = "127.0.0.1"
    """Address that the public ingress listens on."""

    port: Port = 8000
    """Port of the public ingress."""

    haproxy: bool = True
    """Put Ray Serve's HAProxy in front of the gateway replicas instead of its Python proxy."""

    haproxy_metrics_port: Port = 9101
    """Where HAProxy answers Prometheus."""

    haproxy_stats_port: Port = 8404
    """Where HAProxy shows its own statistics."""

    fallback_proxy_port: Port = 8500
    """Where Ray Serve's Python proxy waits, for HAProxy to fall back on while no replica is up."""

    replica_port: Port = 30000
    """First port of the gateway replicas behind HAProxy; each replica on a node takes the next free one."""

    gateway_replicas: Positive = 1
    """Gateway processes behind the ingress."""

    run_directory: Path = Path(".run")
    """Where a local stack keeps its state: keys, secrets, logs, `gateway.json`."""

    model_repository: Path = Path("model_repo")
    """Triton's model repository; every folder in it with a `metadata.json` is served."""

    triton_url: str | None = None
    """`host:port` of an external Triton's gRPC; None starts one here."""

    triton_executable: Path | None = None
    """The `tritonserver` to start; None looks on PATH, then in the nvidia-pytriton wheel."""

    triton_http_port: Port = 8010
    """HTTP port of the Triton started here (loopback only)."""

    triton_grpc_port: Port = 8011
    """gRPC port of the Triton started here (loopback only)."""

    triton_metrics_port: Port = 8012
    """Prometheus port of the Triton started here (loopback only)."""

    triton_start_timeout_seconds: Seconds = 90.0
    """How long the Triton started here may take until all its models are ready."""

    shared_memory: bool = True
    """Hand pictures to a Triton on this machine through shared memory."""

    shared_memory_slots: Positive = 8
    """Batches that fit into a replica's shared memory at a time; more travel in messages."""

    redis_url: SecretStr | None = None
    """`redis://…` of an external Redis or Valkey; None starts one here."""

    redis_port: Port = 6390
    """Port of the Redis started here (loopback only)."""

    redis_timeout_seconds: Annotated[float, Field(gt=0, le=MAX_REDIS_TIMEOUT_SECONDS)] = 0.25
    """How long one call of Redis may take before the fallback takes over."""

    redis_replicas_to_wait_for: Annotated[int, Field(ge=0)] = 0
    """Redis replicas that must have a usage event before its answer leaves, so that a failover keeps it."""

    meter_metrics_port: Port = 9103
    """Where the ledger's consumer answers Prometheus (loopback only)."""

    metrics_port: Port = 9102
    """First port that gateway replicas answer Prometheus on (loopback only); each takes the next free one."""

    dashboard_port: Port = 8265
    """Port of the Ray dashboard (loopback only)."""

    ray_address: str | None = None
    """An existing Ray cluster to deploy on; None starts one here."""

    ray_token: SecretStr = SecretStr("")
    """Bearer token of the Ray cluster and its dashboard; empty is made and kept in the run directory."""

    database_url: str = ""
    """SQLAlchemy URL of keys and ledger; empty is SQLite in the run directory."""

    key_hash_secret: SecretStr = SecretStr("")
    """Secret of the hash that API keys are stored under; empty is made and kept in the run directory."""

    admin_token: SecretStr = SecretStr("")
    """Bearer token of the control plane; empty is made and kept in the run directory."""

    user_jwt_key: SecretStr | None = None
    """What users' JSON Web Tokens are checked with: a PEM public key (RS256, ES256, EdDSA) or a shared
    secret of at least 32 bytes (HS256). None: the control plane takes the admin token only."""

    user_jwt_audience: str = "visiongate"
    """The `aud` that users' tokens must name."""

    tiers_file: Path | None = None
    """The operator's tier table, looked at once a second; None is the one that ships with the gateway."""

    max_body_bytes: Positive = 32 * MEBIBYTE
    """A request body longer than this is refused while it is being read."""

    max_bodies_bytes: Positive = 256 * MEBIBYTE
    """All request bodies that one replica holds at a time; the request that would exceed it gets a 503."""

    max_picture_pixels: Positive = 50_000_000
    """A picture with more pixels than this is refused before it is decoded."""

    max_decoded_pixels: Positive = 100_000_000
    """All decoded pixels that one replica holds at a time; further pictures wait for their turn."""

    max_requests_in_flight: Positive = 256
    """Requests that one replica works on at a time; the next gets a 503. An eighth is left to priorities 1
    and 2, and another to priority 1."""

    max_batches_in_flight: Positive = 2
    """Batches per model, of one priority and those above it, that are on their way to Triton at a time; more
    requests gather in the next batch."""

    max_batch_size: Positive = 16
    """Most pictures in one Triton call."""

    max_queued_pictures: Positive = 256
    """Pictures per model that wait for a batch; of the next and the least urgent, one gets a 503."""

    vision_threads: Positive = 2
    """Threads that decode, letterbox and run NMS."""

    request_timeout_seconds: Seconds = 30.0
    """One deadline for the whole request, carried down to Triton."""

    body_timeout_seconds: Seconds = 10.0
    """How long a client may take to send its body."""

    log_level: str = "INFO"
    """Least severe level that is logged."""

    @property
    def redis_address(self) -> SecretStr:
        """Of the Redis to use, whether it is started here or somewhere else."""
        return self.redis_url or SecretStr(f"redis://127.0.0.1:{self.redis_port}/0")

    @property
    def triton_grpc_address(self) -> str:
        return self.triton_url or f"127.0.0.1:{self.triton_grpc_port}"

    @field_validator("run_directory", "model_repository", "tiers_file", "triton_executable")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        # Ray starts its workers in a directory of its own.
        return None if path is None else path.expanduser().absolute()

    @model_validator(mode="before")
    @classmethod
    def _keep_keys_in_the_run_directory(cls, values: dict[str, Any]) -> dict[str, Any]:
        if not values.get("database_url"):
            run_directory = Path(values.get("run_directory", ".run")).expanduser().absolute()
            values["database_url"] = f"sqlite:///{run_directory / 'visiongate.db'}"
        return values

    @model_validator(mode="after")
    def _fit_together(self) -> Settings:
        if self.max_picture_pixels > self.max_decoded_pixels:
            raise ValueError("max_picture_pixels must not exceed max_decoded_pixels")
        if self.max_body_bytes > self.max_bodies_bytes:
            raise ValueError("max_body_bytes must not exceed max_bodies_bytes")
        ports = [name for name in type(self).model_fields if name == "port" or name.endswith("_port")]
        for port, count in Counter(getattr(self, name) for name in ports).items():
            if count > 1:
                same = ", ".join(name for name in ports if getattr(self, name) == port)
                raise ValueError(f"port {port} is given to more than one: {same}")
        return self


def load_settings() -> Settings:
    """Raises OperatorError, naming the variable, for a value that does not fit.

    Secrets that were not set are made once and kept in the run directory, readable by the owner only, so
    that keys made today work tomorrow.
    """
    try:
        settings = Settings()
    except ValidationError as exc:
        lines = [
            f"VISIONGATE_{'_'.join(map(str, error['loc'])).upper()}: {error['msg']}"
            if error["loc"]
            else error["msg"]
            for error in exc.errors(include_url=False)
        ]
        raise OperatorError("\n".join(lines)) from None
    unset = {name for name in KEPT_SECRETS if not getattr(settings, name).get_secret_value()}
    kept = _kept_secrets(settings.run_directory / "secrets.json") if unset else {}
    return settings.model_copy(update={name: SecretStr(kept[name]) for name in unset})


def _kept_secrets(path: Path) -> dict[str, str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    made = {name: secrets.token_urlsafe(32) for name in KEPT_SECRETS}
    draft = path.with_suffix(f".{os.getpid()}")
    draft.touch(mode=0o600)
    draft.write_text(json.dumps(made))
    try:
        # A link appears whole or not at all, and fails where another process was first.
        path.hardlink_to(draft)
    except FileExistsError:
        pass
    finally:
        draft.unlink()
    try:
        kept = json.loads(path.read_text())
        return {name: str(kept[name]) for name in KEPT_SECRETS}
    except (OSError, ValueError, KeyError, TypeError):
        raise OperatorError(
            f"{path} does not hold the secrets that belong there; restore or remove it."
        ) from None
