"""Ports for servers that tests start."""

from __future__ import annotations

import random
import socket
from itertools import islice

from serving.triton.launcher import TritonPorts

# Neither the system hands these out, to whoever asks for any port, nor Ray.
PORT_RANGE = range(20_000, 29_000)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, and that stay so until they are used."""
    return list(islice(filter(_is_free, random.sample(PORT_RANGE, len(PORT_RANGE))), count))


def free_triton_ports() -> TritonPorts:
    return TritonPorts(*free_ports(3))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
