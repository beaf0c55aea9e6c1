"""Idempotency keys and the answers they stand for, in one gateway process."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace

from serving.adapters import limits
from serving.domain.idempotency import KEPT_SECONDS, IdempotencyKey
from serving.domain.inference import RenderedAnswer
from serving.errors import AnswerNotKept, IdempotencyKeyInUse, IdempotencyKeyReused

MAX_KEYS = 65_536
MAX_BYTES = 64 << 20


@dataclass(slots=True)
class _Claim:
    """answer: None while its owner, a request, is under way, and where there is no room for it any more."""

    owner: str
    fingerprint: str
    ends_at_us: int
    is_answered: bool = False
    answer: RenderedAnswer | None = None

    @property
    def size_bytes(self) -> int:
        return _size_bytes(self.answer) if self.answer is not None else 0


class KeptAnswers:
    """Times are in microseconds on a line that never goes back.

    Beyond `max_bytes`, the oldest answers go first, and that they were given stays; beyond `max_keys`, that
    too. Answers are kept as they are sent: they are there anyway, and compressing them would hold up the
    loop.
    """

    def __init__(self, *, max_keys: int = MAX_KEYS, max_bytes: int = MAX_BYTES) -> None:
        self._max_keys = max_keys
        self._max_bytes = max_bytes
        self._bytes = 0
        self._claims: OrderedDict[tuple[str, str], _Claim] = OrderedDict()
        self._with_answer: OrderedDict[tuple[str, str], _Claim] = OrderedDict()

    def find(self, key_id: str, idempotency: IdempotencyKey, now_us: int) -> RenderedAnswer | None:
        """Raises IdempotencyKeyReused, IdempotencyKeyInUse, AnswerNotKept."""
        claim = self._claims.get((key_id, idempotency.key))
        if claim is None or claim.ends_at_us <= now_us:
            return None
        if claim.fingerprint != idempotency.fingerprint:
            raise IdempotencyKeyReused
        if claim.answer is not None:
            return replace(claim.answer, replayed=True)
        if claim.is_answered:
            raise AnswerNotKept
        left_seconds = (claim.ends_at_us - now_us) / limits.MICROSECONDS
        raise IdempotencyKeyInUse(min(left_seconds, limits.ASK_AGAIN_SECONDS))

    def claim(self, key_id: str, idempotency: IdempotencyKey, owner: str, ends_at_us: int) -> None:
        self._put((key_id, idempotency.key), _Claim(owner, idempotency.fingerprint, ends_at_us))

    def hold(
        self, key_id: str, idempotency: IdempotencyKey, owner: str, *, now_us: int, ends_at_us: int
    ) -> None:
        """Claim it until then, or go on with the claim that `owner` has.

        Raises IdempotencyKeyInUse where another request has it.
        """
        claim = self._unless_anothers(key_id, idempotency, owner, now_us)
        if claim is None:
            self.claim(key_id, idempotency, owner, ends_at_us)
        else:
            claim.ends_at_us = max(claim.ends_at_us, ends_at_us)

    def release(self, key_id: str, idempotency: IdempotencyKey, owner: str) -> None:
        """Nothing where the key is another request's, or has been answered."""
        claim = self._claims.get((key_id, idempotency.key))
        if claim is not None and claim.owner == owner and not claim.is_answered:
            del self._claims[key_id, idempotency.key]

    def keep(
        self, key_id: str, idempotency: IdempotencyKey, owner: str, answer: RenderedAnswer, now_us: int
    ) -> None:
        """Raises IdempotencyKeyInUse where another request has taken the key over."""
        self._unless_anothers(key_id, idempotency, owner, now_us)
        ends_at_us = now_us + KEPT_SECONDS * limits.MICROSECONDS
        kept = answer if _size_bytes(answer) <= self._max_bytes else None
        claim = _Claim(owner, idempotency.fingerprint, ends_at_us, is_answered=True, answer=kept)
        self._put((key_id, idempotency.key), claim)

    def _unless_anothers(
        self, key_id: str, idempotency: IdempotencyKey, owner: str, now_us: int
    ) -> _Claim | None:
        claim = self._claims.get((key_id, idempotency.key))
        if claim is None or claim.ends_at_us <= now_us:
            return None
        if claim.owner != owner:
            raise IdempotencyKeyInUse(limits.ASK_AGAIN_SECONDS)
        return claim

    def _put(self, name: tuple[str, str], claim: _Claim) -> None:
        self._forget_answer(name)
        self._claims.pop(name, None)
        self._claims[name] = claim
        if claim.answer is not None:
            self._with_answer[name] = claim
            self._bytes += claim.size_bytes
        while self._bytes > self._max_bytes:
            self._forget_answer(next(iter(self._with_answer)))
        while len(self._claims) > self._max_keys:
            self._forget_answer(next(iter(self._claims)))
            self._claims.popitem(last=False)

    def _forget_answer(self, name: tuple[str, str]) -> None:
        if (claim := self._with_answer.pop(name, None)) is not None:
            self._bytes -= claim.size_bytes
            claim.answer = None


def _size_bytes(answer: RenderedAnswer) -> int:
    return len(answer.body) + sum(len(name) + len(value) for name, value in answer.headers.items())
