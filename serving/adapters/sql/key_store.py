"""API keys in the SQL database, as the gateway asks for them."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Mapping

from pydantic import SecretStr

from serving.adapters.background import do_every
from serving.adapters.fresh_cache import Answer, FreshCache
from serving.adapters.sql.database import Database
from serving.adapters.sql.key_tables import key_opened_by, records_of
from serving.adapters.sql.key_uses import WRITE_SECONDS, KeyUses
from serving.adapters.sql.key_watch import LOOK_SECONDS, MAX_ANSWER_AGE_SECONDS, KeyChangeWatch
from serving.domain.api_key import ApiKey, KeyHasher
from serving.domain.key_change import ChangedKeys
from serving.domain.key_record import KeyRecord, authenticated
from serving.domain.tenant import Principal, Tier
from serving.errors import BackendUnavailable
from serving.ports import Clock

MAX_CONFIRMED_SECONDS = 60.0
"""How long a key works that cannot be looked up, because the database is down.

While it is down nobody can revoke anything, so what the subscription confirms is what there is. This bounds
the rest: a revocation that was committed and not published, in a database that is closed to us alone.
"""
MAX_CACHED_KEYS = 10_000
MAX_LOOK_UPS = 1_000
LOOK_UP_TIMEOUT_SECONDS = 2.0
LAST_WRITE_SECONDS = 2.0


class SqlKeyStore:
    """`KeyStore` over SQL: one indexed look-up by prefix, remembered for a second, or longer while confirmed.

    What is remembered is the record, or that there is none; the secret is compared for every request. It is a
    `KeyDatabaseListener`: `run` has it told of changes by the database, a subscription tells it sooner.
    Without either, no answer is older than a second.
    """

    def __init__(
        self, database: Database, *, server_secret: SecretStr, tiers: Mapping[str, Tier], clock: Clock
    ) -> None:
        """Raises OperatorError for a secret that is too short."""
        self._database = database
        self._hasher = KeyHasher(server_secret)
        self._tiers = tiers
        self._clock = clock
        self._records = FreshCache(
            self._look_up,
            clock=clock,
            max_age_seconds=MAX_ANSWER_AGE_SECONDS,
            max_confirmed_seconds=MAX_CONFIRMED_SECONDS,
            max_entries=MAX_CACHED_KEYS,
            max_loads=MAX_LOOK_UPS,
            timeout_seconds=LOOK_UP_TIMEOUT_SECONDS,
        )
        self._published_until = self._closed_at = -math.inf
        self._watch = KeyChangeWatch(database, self, clock)
        self._uses = KeyUses(database)

    async def authenticate(self, api_key: str) -> Principal:
        """Besides the port's errors: BackendUnavailable and Overloaded, when nobody can tell."""
        key = ApiKey.parse(api_key)
        try:
            record = await self._records.get(key.prefix)
        except TimeoutError as exc:
            raise BackendUnavailable("The key database does not answer.") from exc
        now = self._clock.now()
        principal = authenticated(record, key, hasher=self._hasher, tiers=self._tiers, now=now)
        self._uses.note(principal.key_id, now)
        return principal

    def forget(self, keys: ChangedKeys) -> None:
        self._records.forget(lambda record: record is None or keys.include(record))

    def forget_all(self) -> None:
        self._records.forget(lambda _: True)

    def confirm(self, moment: float) -> None:
        self._records.confirm(moment)

    def confirm_published(self, moment: float) -> None:
        self._published_until = moment
        self._confirm_by_both()

    def confirm_closed(self, moment: float) -> None:
        self._closed_at = moment
        self._confirm_by_both()

    def _confirm_by_both(self) -> None:
        """A change that is unknown to us was neither published nor, in a closed database, committed.

        Each knows of the moments at which it was asked, a quarter of a second apart. Where both fall silent
        for longer than a change stands unpublished before it counts as made, it is not gone on from there.
        """
        self._records.confirm_on(min(self._published_until, self._closed_at))

    async def run(self) -> None:
        """Look for changes and write down uses, until cancelled."""
        await asyncio.gather(
            do_every(LOOK_SECONDS, self._watch.look), do_every(WRITE_SECONDS, self._uses.write_down)
        )

    async def close(self) -> None:
        """Ends look-ups under way; the database stays open, since it is not ours alone."""
        await self._records.close()
        with contextlib.suppress(BackendUnavailable, TimeoutError):
            async with asyncio.timeout(LAST_WRITE_SECONDS):
                await self._uses.write_down()

    async def _look_up(self, prefix: str) -> Answer[KeyRecord | None]:
        async with self._database.reading() as session:
            await session.connection()  # waiting for a connection does not age an answer; the query does
            asked_at = self._clock.monotonic()
            rows = await session.execute(key_opened_by(prefix))
            record = next(iter(records_of(rows)), None)
        return Answer(record, asked_at)
