"""The process of a Triton that a model of our Python-based backend runs in."""

from __future__ import annotations

import psutil

from serving.triton.launcher import TritonServer


def stub_of(server: TritonServer, model: str) -> psutil.Process:
    """Another one after each time that the model is loaded."""
    (stub,) = [
        child
        for child in psutil.Process(server.pid).children()
        if any(part.startswith(f"{model}_0") for part in child.cmdline())
    ]
    return stub
