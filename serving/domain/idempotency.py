"""A client's own name for a request, under which it may ask again without paying again.

Protocol: draft-ietf-httpapi-idempotency-key-header-07.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

KEPT_SECONDS = 24 * 3600
MAX_KEY_CHARACTERS = 255


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """key: as sent, without its quotes. fingerprint: SHA-256, in hexadecimal, of what was asked."""

    key: str
    fingerprint: str


def fingerprint(parts: Iterable[bytes]) -> str:
    """Of the parts in their order; where one ends and the next begins counts."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()
