"""`visiongate up` and the commands that find it, as a new user meets them."""

from __future__ import annotations

import json
import signal
import socket
import stat
import subprocess
import time
from pathlib import Path

import cv2
import httpx
import pytest

from tests.support.stack import COMMAND, Stack, environment, running_stack


def test_it_describes_itself_once_it_is_ready(stack: Stack) -> None:
    described = stack.described
    assert set(described) >= {
        *("url", "api_key", "admin_token", "triton_url", "redis_url"),
        *("metrics_url", "dashboard_url", "annotated_image"),
    }
    assert stat.S_IMODE((stack.run_directory / "gateway.json").stat().st_mode) == 0o600
    assert httpx.get(f"{stack.url}/readyz").json() == {"ready": True, "checks": {"shapes": True}}
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
    revoked = stack.command("keys", "revoke", made["id"])
    deadline = time.monotonic() + 1.0
    while (response := httpx.post(f"{stack.url}/v1/infer", **request)).status_code == 200:  # type: ignore[arg-type]  # a mixed dict
        assert time.monotonic() < deadline

    assert before == 200
    assert revoked.returncode == 0
    assert response.json()["code"] == "key_revoked"


def test_the_logs_hold_requests_but_no_key_and_no_picture(stack: Stack, sample: Path) -> None:
    response = httpx.post(
        f"{stack.url}/v1/infer",
        content=sample.read_bytes(),
        headers={**stack.bearer, "Content-Type": "image/jpeg"},
    )
    logs = "".join(path.read_text() for path in (stack.run_directory / "logs").glob("*.jsonl"))

    lines = [json.loads(line) for line in logs.splitlines()]
    (line,) = [entry for entry in lines if entry.get("request_id") == response.json()["request_id"]]
    assert line["event"] == "request"
    assert line["model"] == "shapes"
    assert line["status"] == 200
    assert str(stack.described["api_key"]) not in logs


@pytest.mark.parametrize("variable", ["PORT", "REDIS_PORT", "TRITON_GRPC_PORT"])
def test_a_taken_port_is_a_clear_error(tmp_path: Path, variable: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
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


def test_a_second_start_is_quick_and_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    """In the directory of the first start its keys still work; a stopped stack is not described any more."""
    with running_stack(tmp_path / ".run") as first:
        made = json.loads(first.command("keys", "create", "--tier", "pro", "--user", "ada", "--json").stdout)
    with running_stack(tmp_path / ".run", stop_with=signal.SIGINT) as second:
        models = httpx.get(f"{second.url}/v1/models", headers={"Authorization": f"Bearer {made['api_key']}"})

    assert models.status_code == 200
    assert not (tmp_path / ".run" / "gateway.json").exists()
