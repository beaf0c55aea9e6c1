from __future__ import annotations

import logging

import pytest

from serving.errors import OperatorError
from serving.triton.launcher import TritonPorts, level_of


@pytest.mark.parametrize(
    ("ports", "why"),
    [
        ((0, 8001, 8002), "0 means any port to the system, and then nobody knows which"),
        ((8000, 8000, 8002), "two services on one port"),
        ((8000, 8001, 65536), "no such port"),
    ],
)
def test_ports_that_cannot_work_are_refused(ports: tuple[int, int, int], why: str) -> None:
    with pytest.raises(OperatorError, match="three different ports"):
        TritonPorts(*ports)


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("", logging.INFO),
        ('I1121 02:34:55.080734 6511 model_lifecycle.cc:472] "loading: add1:1"', logging.INFO),
        ('W1121 02:34:55.080734 6511 somewhere.cc:1] "low on memory"', logging.WARNING),
        ('E1121 02:34:55.080734 6511 model_lifecycle.cc:642] "failed to load"', logging.ERROR),
        ('F1121 02:34:55.080734 6511 somewhere.cc:1] "giving up"', logging.CRITICAL),
        (
            'E1121 02:34:23.821902 6186 server.cc:241] "CudaDriverHelper has not been initialized."',
            logging.DEBUG,
        ),
        ("Error: Failed to initialize NVML", logging.DEBUG),
        ("| Model | Version | Status |", logging.DEBUG),
        ("error: creating server: Internal - failed to load all models", logging.ERROR),
        ("Signal (11) received.", logging.ERROR),
        ("Signal (15) received.", logging.INFO),
    ],
)
def test_levels_of_what_triton_prints(line: str, level: int) -> None:
    assert level_of(line) == level
