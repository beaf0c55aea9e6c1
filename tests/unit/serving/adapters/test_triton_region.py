from __future__ import annotations

import grpc
import pytest

from serving.adapters.triton_region import is_refusal, is_unknown_region


@pytest.mark.parametrize(
    ("code", "text", "refused"),
    [
        (grpc.StatusCode.INTERNAL, "", True),
        (grpc.StatusCode.UNIMPLEMENTED, "", True),
        (grpc.StatusCode.INTERNAL, "Unable to open shared memory region: '/x'", True),
        (grpc.StatusCode.INVALID_ARGUMENT, "Invalid argument", True),
        (grpc.StatusCode.UNAVAILABLE, "system shared memory is disabled", True),
        (grpc.StatusCode.UNAVAILABLE, "start the server with --allow-client-shm=true", True),
        (grpc.StatusCode.UNAVAILABLE, "failed to connect to all addresses", False),
        (grpc.StatusCode.UNAVAILABLE, "Socket closed", False),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", False),
        (grpc.StatusCode.CANCELLED, "", False),
    ],
)
def test_a_server_that_is_absent_has_not_refused(code: grpc.StatusCode, text: str, refused: bool) -> None:
    assert is_refusal(code, text) is refused


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("", False),
        ("Unable to find shared memory region: 'visiongate-batches-1-a'", True),
        ("Request for unknown model: 'm' is not found", False),
        ("Invalid offset + byte size for shared memory region: 'r'", False),
    ],
)
def test_only_a_region_that_nobody_registered_is_unknown(text: str, unknown: bool) -> None:
    assert is_unknown_region(text) is unknown
