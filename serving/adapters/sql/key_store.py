"""API keys in the SQL database, as the gateway asks for them."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import SecretStr
from sqlalchemy import select

from serving.adapters.fresh_cache import Answer, FreshCache
from serving.adapters.sql.database import Database
from serving.adapters.sql.tables import ApiKeyRow
from serving.domain.api_key import ApiKey, KeyHasher
from serving.domain.key_record import KeyRecord, authenticated
from serving.domain.tenant import Principal, Tier
from serving.errors import BackendUnavailable
from serving.ports import Clock

MAX_ANSWER_AGE_SECONDS = 1.0
MAX_CACHED_KEYS = 10_000
MAX_LOOK_UPS = 1_000
LOOK_UP_TIMEOUT_SECONDS = 2.0


class SqlKeyStore:
    """`KeyStore` over SQL: one indexed look-up by prefix, remembered for at most a second.

    What is remembered is the record, or that there is none; the secret is compared for every request.
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
            max_entries=MAX_CACHED_KEYS,
            max_loads=MAX_LOOK_UPS,
            timeout_seconds=LOOK_UP_TIMEOUT_SECONDS,
        )

    async def authenticate(self, api_key: str) -> Principal:
        """Besides the port's errors: BackendUnavailable and Overloaded, when nobody can tell."""
        key = ApiKey.parse(api_key)
        try:
            record = await self._records.get(key.prefix)
        except TimeoutError as exc:
            raise BackendUnavailable("The key database does not answer.") from exc
        return authenticated(record, key, self._hasher).principal(self._tiers, self._clock.now())

    async def close(self) -> None:
        """Ends look-ups under way; the database stays open, since it is not ours alone."""
        await self._records.close()

    async def _look_up(self, prefix: str) -> Answer[KeyRecord | None]:
        async with self._database.reading() as session:
            await session.connection()  # waiting for a connection does not age an answer; the query does
            asked_at = self._clock.monotonic()
            row = await session.scalar(select(ApiKeyRow).where(ApiKeyRow.prefix == prefix))
        return Answer(None if row is None else row.record(), asked_at)
