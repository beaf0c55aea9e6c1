"""What is kept of an issued key, and what that says of a caller who shows one.

::

    key ── id, user, tier, models, expiry, revocation      what limits, prices and usage hang on
     ├── secret  pk_4fQ8sXw2LmZa_…  ends with the overlap  ┐ what callers show: a rotation adds one,
     └── secret  pk_Zt03bVq9YhKe_…  the newest             ┘ and lets the earlier ones end
"""

from __future__ import annotations

import hmac
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Literal

from serving.domain.api_key import ApiKey, KeyHasher, random_base62
from serving.domain.month import YEARS
from serving.domain.tenant import Principal, Tier
from serving.errors import InternalError, KeyExpired, KeyRevoked, OperatorError, Unauthenticated

KeyState = Literal["active", "disabled", "expired", "revoked"]

ID_CHARACTERS = 16
MAX_NAME_CHARACTERS = 200
MAX_ACTOR_CHARACTERS = 240
"""A user's name, and before it what kind of actor that is."""
EXPIRIES_END = datetime(YEARS.stop, 1, 1, tzinfo=UTC)
"""Every expiry lies before it, far from where the calendar ends in one zone and not yet in another."""
MAX_SECRETS = 8
"""Of one key, those included that have ended and are kept to say so."""
MAX_OVERLAP = timedelta(days=365)

_HASH_OF_NO_KEY = "0" * 64
_NEVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class KeySecret:
    """One of the texts that open a key. expires_at: None for the newest, else where its overlap ends."""

    prefix: str
    key_hash: str = field(repr=False)
    created_at: datetime
    expires_at: datetime | None = None

    def has_expired(self, now: datetime) -> bool:
        return self.expires_at is not None and now >= self.expires_at

    def ending(self, moment: datetime) -> KeySecret:
        """The same, ending then, or earlier where it did so already."""
        return replace(self, expires_at=min(moment, self.expires_at or _NEVER))


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """One issued key without the texts of its secrets. Times are in UTC; `models` None means every model.

    secrets: in the order of `by_age`, at least one. user_disabled: its owner may use none of their keys.
    """

    id: str
    user: str
    tier: str
    models: frozenset[str] | None
    created_at: datetime
    secrets: tuple[KeySecret, ...]
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None
    user_disabled: bool = False

    @property
    def prefix(self) -> str:
        """Of the newest secret: what the key is shown by."""
        return self.secrets[-1].prefix

    def state(self, now: datetime) -> KeyState:
        """What is for good outweighs what can be undone."""
        if self.revoked_at is not None:
            return "revoked"
        if self.expires_at is not None and now >= self.expires_at:
            return "expired"
        return "disabled" if self.user_disabled else "active"

    def revoked(self, now: datetime) -> KeyRecord:
        return replace(self, revoked_at=self.revoked_at or now)


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A new key, or a new secret of one: the only moment at which its text is known."""

    record: KeyRecord
    api_key: ApiKey


def by_age(secrets: Iterable[KeySecret]) -> tuple[KeySecret, ...]:
    """Oldest first. None ends later than a younger one, and the youngest has no end."""
    return tuple(
        sorted(secrets, key=lambda secret: (secret.expires_at or _NEVER, secret.created_at, secret.prefix))
    )


def authenticated(
    record: KeyRecord | None, key: ApiKey, *, hasher: KeyHasher, tiers: Mapping[str, Tier], now: datetime
) -> Principal:
    """Whom `key` stands for, by the record that its prefix led to.

    Raises Unauthenticated, in the same time for every wrong key; KeyRevoked, KeyExpired; InternalError where
    the operator removed the key's tier.
    """
    record, secret = _proven(record, key, hasher)
    match record.state(now):
        case "revoked":
            raise KeyRevoked
        case "disabled":
            # `key_revoked` and not `unauthenticated`: the key is known and was withdrawn on purpose, so its
            # holder must ask the operator; the other code would send them looking for a typo.
            raise KeyRevoked("This API key does not work, because its user has been disabled.")
        case "expired":
            raise KeyExpired
    if secret.has_expired(now):
        raise KeyExpired
    tier = tiers.get(record.tier)
    if tier is None:
        raise InternalError from LookupError(
            f"key {record.id} is in the tier {record.tier!r}, which does not exist"
        )
    ends = [moment for moment in (record.expires_at, secret.expires_at) if moment is not None]
    return Principal(record.id, record.user, tier, record.models, min(ends, default=None))


def _proven(record: KeyRecord | None, key: ApiKey, hasher: KeyHasher) -> tuple[KeyRecord, KeySecret]:
    secrets = () if record is None else record.secrets
    secret = next((secret for secret in secrets if secret.prefix == key.prefix), None)
    kept_hash = _HASH_OF_NO_KEY if secret is None else secret.key_hash
    if not hmac.compare_digest(hasher.hash(key), kept_hash) or record is None or secret is None:
        raise Unauthenticated("This API key is unknown.")
    return record, secret


def issue_key(
    *,
    user: str,
    tier: str,
    models: Iterable[str] | None,
    expires_at: datetime | None,
    tiers: Collection[str],
    hasher: KeyHasher,
    now: datetime,
) -> IssuedKey:
    """Raises OperatorError, saying what would be accepted, for a key that nobody could use."""
    if tier not in tiers:
        raise OperatorError(f"There is no tier {tier!r}; the tiers are {', '.join(sorted(tiers))}.")
    key = ApiKey.generate()
    record = KeyRecord(
        id=f"key_{random_base62(ID_CHARACTERS)}",
        user=checked_name("A user", user),
        tier=tier,
        models=_allowed_models(models),
        created_at=now,
        secrets=(KeySecret(key.prefix, hasher.hash(key), created_at=now),),
        expires_at=_future(expires_at, now),
    )
    return IssuedKey(record, key)


def rotate_key(record: KeyRecord, *, overlap: timedelta, hasher: KeyHasher, now: datetime) -> IssuedKey:
    """The same key with one more secret; the earlier ones end with the overlap, or before where they did.

    Of those that have ended, the oldest make room. Raises OperatorError for an overlap that is none, for a
    key that no secret would open, and for one with too many secrets that still work.
    """
    if not timedelta() <= overlap <= MAX_OVERLAP:
        raise OperatorError(f"The overlap is 0 to {MAX_OVERLAP.days} days.")
    state = record.state(now)
    if state in ("revoked", "expired"):
        raise OperatorError(f"The key {record.id} is {state}; create another one.")
    key = ApiKey.generate()
    earlier = [secret.ending(now + overlap) for secret in record.secrets]
    working = [secret for secret in earlier if not secret.has_expired(now)]
    if len(working) >= MAX_SECRETS:
        raise OperatorError(
            f"The key {record.id} has {len(working)} secrets that still work; wait, or let them end now "
            "with no overlap."
        )
    newest = KeySecret(key.prefix, hasher.hash(key), created_at=now)
    kept = by_age([*earlier, newest])[-MAX_SECRETS:]
    return IssuedKey(replace(record, secrets=kept), key)


def checked_name(what: str, name: str, *, most_characters: int = MAX_NAME_CHARACTERS) -> str:
    """Raises OperatorError for a name that nobody could read, or that no row would hold."""
    if not can_be_a_name(name, most_characters=most_characters):
        raise OperatorError(f"{what} is named with 1 to {most_characters} printable characters.")
    return name


def can_be_a_name(text: str, *, most_characters: int = MAX_NAME_CHARACTERS) -> bool:
    """Whether something may be called so; where not, nothing is, and no database need be asked."""
    return bool(text.strip()) and text.isprintable() and len(text) <= most_characters


def _allowed_models(models: Iterable[str] | None) -> frozenset[str] | None:
    if models is None:
        return None
    allowed = frozenset(checked_name("A model", model) for model in models)
    if not allowed:
        raise OperatorError("Name at least one model, or leave the models out to allow every one.")
    return allowed


def _future(expires_at: datetime | None, now: datetime) -> datetime | None:
    """In UTC."""
    if expires_at is None:
        return None
    if expires_at.utcoffset() is None:
        raise OperatorError("The expiry needs a time zone.")
    if expires_at <= now:
        raise OperatorError("The expiry lies in the past.")
    if expires_at >= EXPIRIES_END:
        raise OperatorError(f"The expiry lies after the year {YEARS[-1]}; leave it out for never.")
    return expires_at.astimezone(UTC)
