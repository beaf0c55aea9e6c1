"""Idempotency keys and the answers they stand for, in one gateway process."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from serving.adapters import answer_codec, limits
from serving.domain.idempotency import KEPT_SECONDS, IdempotencyKey
from serving.domain.inference import RenderedAnswer
from serving.errors import IdempotencyKeyInUse, IdempotencyKeyReused

MAX_KEYS = 65_536
MAX_BYTES = 64 << 20


@dataclass(slots=True)
class _Claim:
    """answer: encoded; None while its owner, a request, is under way."""

    owner: str
    fingerprint: str
    ends_at_us: int
    answer: bytes | None = None

    @property
    def size_bytes(self) -> int:
        return len(self.answer or b"")


class KeptAnswers:
    """Times are in microseconds on a line that never goes back. Beyond the bounds, the oldest go first."""

    def __init__(self, *, max_keys: int = MAX_KEYS, max_bytes: int = MAX_BYTES) -> None:
        self._max_keys = max_keys
        self._max_bytes = max_bytes
        self._bytes = 0
        self._claims: OrderedDict[tuple[str, str], _Claim] = OrderedDict()

    def find(self, key_id: str, idempotency: IdempotencyKey, now_us: int) -> RenderedAnswer | None:
        """Raises IdempotencyKeyReused, IdempotencyKeyInUse."""
        claim = self._claims.get((key_id, idempotency.key))
        if claim is None or claim.ends_at_us <= now_us:
            return None
        if claim.fingerprint != idempotency.fingerprint:
            raise IdempotencyKeyReused
        if claim.answer is not None:
            return answer_codec.decode(claim.answer)
        left_seconds = (claim.ends_at_us - now_us) / limits.MICROSECONDS
        raise IdempotencyKeyInUse(min(left_seconds, limits.ASK_AGAIN_SECONDS))

    def claim(self, key_id: str, idempotency: IdempotencyKey, owner: str, ends_at_us: int) -> None:
        self._put((key_id, idempotency.key), _Claim(owner, idempotency.fingerprint, ends_at_us))

    def release(self, key_id: str, idempotency: IdempotencyKey, owner: str) -> None:
        """Nothing where the key is another request's, or has been answered."""
        claim = self._claims.get((key_id, idempotency.key))
        if claim is not None and claim.owner == owner and claim.answer is None:
            del self._claims[key_id, idempotency.key]

    def keep(
        self, key_id: str, idempotency: IdempotencyKey, owner: str, answer: RenderedAnswer, now_us: int
    ) -> None:
        """Raises IdempotencyKeyInUse where another request has taken the key over."""
        claim = self._claims.get((key_id, idempotency.key))
        if claim is not None and claim.owner != owner and claim.ends_at_us > now_us:
            raise IdempotencyKeyInUse(limits.ASK_AGAIN_SECONDS)
        ends_at_us = now_us + KEPT_SECONDS * limits.MICROSECONDS
        kept = _Claim(owner, idempotency.fingerprint, ends_at_us, answer_codec.encode(answer))
        self._put((key_id, idempotency.key), kept)

    def _put(self, name: tuple[str, str], claim: _Claim) -> None:
        if (former := self._claims.pop(name, None)) is not None:
            self._bytes -= former.size_bytes
        self._claims[name] = claim
        self._bytes += claim.size_bytes
        while len(self._claims) > self._max_keys or self._bytes > self._max_bytes:
            _, oldest = self._claims.popitem(last=False)
            self._bytes -= oldest.size_bytes
