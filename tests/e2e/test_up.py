"""`visiongate up` and the commands that find it, as a new user meets them."""

from __future__ import annotations

import importlib.util
import json
import signal
import socket
import stat
import subprocess
import sys
import time
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import cv2
import httpx
import pytest

from serving.settings import Settings
from tests.support.ports import free_ports
from tests.support.stack import (
    COMMAND,
    PORTS,
    Stack,
    await_description,
    environment,
    output_of,
    running_stack,
    started,
    stop,
)
from tests.support.waiting import eventually

# As a user does, but for the installing: tests leave the environment that they run in as it is.
MAKE_RUN = ("make", "--old-file=.venv/.local", f"BIN={Path(sys.executable).parent}", "run")


def test_it_describes_itself_once_it_is_ready(stack: Stack) -> None:
    described = stack.described
    assert set(described) >= {
        *("url", "api_key", "admin_token", "triton_url", "redis_url"),
        *("metrics_url", "dashboard_url", "annotated_image"),
    }
    assert stat.S_IMODE((stack.run_directory / "gateway.json").stat().st_mode) == 0o600
    assert httpx.get(f"{stack.url}/readyz").json() == {
        "ready": True,
        "checks": {"keys": True, "models": True},
        "degraded": [],
    }
    assert httpx.get(f"{described['triton_url']}/v2/health/ready").status_code == 200
    assert "visiongate_http_requests_total" in httpx.get(str(described["metrics_url"])).text
    assert httpx.get(str(described["dashboard_url"])).status_code == 200


def test_the_first_prediction_is_shown_and_drawn(stack: Stack, sample: Path) -> None:
    shown = (stack.run_directory / "output.txt").read_text()
    annotated = cv2.imread(str(stack.described["annotated_image"]))
    plain = cv2.imread(str(sample))

    assert all(name in shown for name in ("circle", "square", "triangle", "star"))
    assert annotated.shape == plain.shape
    assert (annotated != plain).any()


def test_its_key_is_of_the_top_tier_and_for_every_model(stack: Stack) -> None:
    listed = json.loads(stack.command("keys", "list", "--json").stdout)

    (key,) = [each for each in listed if stack.described["api_key"].startswith(f"{each['prefix']}_")]
    assert (key["tier"], key["models"], key["state"]) == ("enterprise", None, "active")
    assert key["expires_at"] is None


def test_the_docs_describe_the_route(stack: Stack) -> None:
    schema = httpx.get(f"{stack.url}/openapi.json").json()

    bodies = schema["paths"]["/v1/infer"]["post"]["requestBody"]["content"]
    assert {"application/json", "multipart/form-data", "image/jpeg"} <= set(bodies)
    assert httpx.get(f"{stack.url}/docs").status_code == 200


def test_models_and_infer_find_the_stack(stack: Stack, sample: Path, tmp_path: Path) -> None:
    models = stack.command("models", "--json")
    drawn = tmp_path / "drawn.jpg"
    answer = stack.command("infer", sample, "--json", "--draw", drawn)

    assert [model["id"] for model in json.loads(models.stdout)] == ["shapes"]
    assert json.loads(answer.stdout)["predictions"]
    assert drawn.exists()


def test_a_key_is_made_used_and_revoked_within_a_second(stack: Stack, sample: Path) -> None:
    made = json.loads(stack.command("keys", "create", "--tier", "pro", "--user", "ada", "--json").stdout)
    request = {
        "content": sample.read_bytes(),
        "headers": {"Authorization": f"Bearer {made['api_key']}", "Content-Type": "image/jpeg"},
    }
    before = httpx.post(f"{stack.url}/v1/infer", **request).status_code  # type: ignore[arg-type]  # a mixed dict
    with ThreadPoolExecutor(1) as beside:
        revoking = beside.submit(stack.command, "keys", "revoke", made["id"])
        last_let_in = asked_at = time.time()
        while (response := httpx.post(f"{stack.url}/v1/infer", **request)).status_code == 200:  # type: ignore[arg-type]  # a mixed dict
            last_let_in, asked_at = asked_at, time.time()
        revoked = revoking.result()
    operator = {"Authorization": f"Bearer {stack.described['admin_token']}"}
    record = httpx.get(f"{stack.url}/api/v1/keys/{made['id']}", headers=operator).json()

    assert before == 200
    assert revoked.returncode == 0
    assert response.json()["code"] == "key_revoked"
    assert last_let_in - datetime.fromisoformat(record["revoked_at"]).timestamp() < 1.0


@pytest.mark.parametrize("form", ["picture", "json", "refused_json"])
def test_the_logs_hold_requests_but_no_key_and_no_picture(stack: Stack, sample: Path, form: str) -> None:
    picture = sample.read_bytes()
    text = b64encode(picture).decode()
    content, media_type, status = {
        "picture": (picture, "image/jpeg", 200),
        "json": (json.dumps({"image": text}).encode(), "application/json", 200),
        "refused_json": (json.dumps({"image": text, text[:99]: text}).encode(), "application/json", 422),
    }[form]
    response = httpx.post(
        f"{stack.url}/v1/infer", content=content, headers={**stack.bearer, "Content-Type": media_type}
    )
    request_id = response.json()["request_id"]

    def its_lines() -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in stack.logs().splitlines()]
        return [line for line in lines if line.get("request_id") == request_id]

    assert eventually(lambda: bool(its_lines()))
    (line,) = its_lines()
    assert (line["event"], line["status"], response.status_code) == ("request", status, status)
    assert line.get("model") == ("shapes" if status == 200 else None)
    assert_no_secret_and_no_picture(stack, picture)


def assert_no_secret_and_no_picture(stack: Stack, picture: bytes) -> None:
    written = b"".join(path.read_bytes() for path in stack.run_directory.glob("logs/*"))
    bearer_key, admin_token = stack.described["api_key"], stack.described["admin_token"]
    for secret in (bearer_key, bearer_key.rpartition("_")[2], admin_token):
        assert str(secret).encode() not in written
    # As it is, in base64, and as `repr` and JSON would write it.
    assert picture[:8] not in written
    assert b64encode(picture)[:16] not in written
    assert rb"\xff\xd8\xff" not in written
    assert rb"\u00ff\u00d8\u00ff" not in written


@pytest.mark.parametrize("variable", [name for name in PORTS if name != "REPLICA_PORT"])
def test_a_taken_port_is_a_clear_error(tmp_path: Path, variable: str) -> None:
    with socket.create_server(("127.0.0.1", free_ports(1)[0])) as taken:
        port = taken.getsockname()[1]
        result = subprocess.run(
            [COMMAND, "up"],
            env=environment(tmp_path, **{variable: str(port)}),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    assert result.returncode == 2
    assert f"Port {port} is taken; choose another with VISIONGATE_{variable}." in result.stderr
    assert "Traceback" not in result.stderr


def test_the_ports_above_are_all_there_are() -> None:
    """The first of the replicas' ports may be taken: a replica takes the next."""
    names = [name for name in Settings.model_fields if name == "port" or name.endswith("_port")]
    assert {name.upper() for name in names} == set(PORTS)


def test_commands_without_a_stack_say_so(tmp_path: Path) -> None:
    result = subprocess.run(
        [COMMAND, "models"],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert result.returncode == 2
    assert "visiongate up" in result.stderr


@pytest.mark.timeout(400)
def test_make_starts_it_a_second_time_and_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    """In the directory of the first start its keys still work; a stopped stack is not described any more."""
    with running_stack(tmp_path / ".run") as first:
        made = json.loads(first.command("keys", "create", "--tier", "pro", "--user", "ada", "--json").stdout)
    with running_stack(
        tmp_path / ".run", command=MAKE_RUN, stop_with=signal.SIGINT, exit_status=-signal.SIGINT
    ) as second:
        models = httpx.get(f"{second.url}/v1/models", headers={"Authorization": f"Bearer {made['api_key']}"})

    assert models.status_code == 200
    assert not (tmp_path / ".run" / "gateway.json").exists()


@pytest.mark.timeout(400)
@pytest.mark.parametrize("reached", ["redis-server", "gcs_server", "ServeController"])
def test_stopped_while_it_starts_it_leaves_nothing(tmp_path: Path, reached: str) -> None:
    with started(tmp_path / ".run") as (process, processes, _):
        assert eventually(lambda: processes.has(reached), within_seconds=60)
        stop(process, signal.SIGTERM)

    assert "Traceback" not in output_of(tmp_path / ".run")
    assert not (tmp_path / ".run" / "gateway.json").exists()


@pytest.mark.timeout(400)
def test_killed_it_leaves_no_process(tmp_path: Path) -> None:
    """Its folders stay: nobody is left to remove them."""
    with started(tmp_path / ".run", killed=True) as (process, processes, _):
        await_description(process, tmp_path / ".run")
        processes.look()
        stop(process, signal.SIGKILL)


def test_torch_is_not_installed_for_the_gateway() -> None:
    assert importlib.util.find_spec("torch") is None
    assert importlib.util.find_spec("ultralytics") is None
