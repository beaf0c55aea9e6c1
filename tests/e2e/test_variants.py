"""Stacks that are put together differently, each started for one test."""

from __future__ import annotations

from pathlib import Path

import httpx
import psutil
import pytest

from serving.triton.launcher import TritonServer
from tests.support.stack import Stack, running_stack

pytestmark = pytest.mark.timeout(400)


def assert_it_serves(stack: Stack, sample: Path) -> None:
    assert httpx.get(f"{stack.url}/readyz").json()["ready"] is True
    response = httpx.post(
        f"{stack.url}/v1/infer",
        content=sample.read_bytes(),
        headers={**stack.bearer, "Content-Type": "image/jpeg"},
        timeout=20,
    )
    assert response.status_code == 200
    assert response.json()["predictions"]


def programs(stack: Stack) -> str:
    family = psutil.Process(stack.process.pid).children(recursive=True)
    return "\n".join(" ".join(process.cmdline()) for process in family)


def test_rays_own_proxy_serves_in_place_of_haproxy(tmp_path: Path, sample: Path) -> None:
    with running_stack(tmp_path / ".run", HAPROXY="0") as stack:
        assert_it_serves(stack, sample)
        running = programs(stack)

    assert "tritonserver" in running
    assert "haproxy" not in running.lower()


def test_a_triton_that_runs_already_is_used_and_none_started(
    tmp_path: Path, sample: Path, triton: TritonServer
) -> None:
    with running_stack(tmp_path / ".run", TRITON_URL=triton.grpc_url) as stack:
        assert_it_serves(stack, sample)
        running = programs(stack)

    assert "haproxy" in running
    assert "tritonserver" not in running
    assert stack.described["triton_url"] == f"grpc://{triton.grpc_url}"
    assert httpx.get(f"{triton.http_url}/v2/health/ready").status_code == 200
