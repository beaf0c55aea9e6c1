"""Keys of a database that was made before keys had several secrets work on as they did."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from serving.adapters.memory.clock import START, ManualClock
from serving.adapters.sql.database import Database, parse_database_url
from serving.domain.api_key import ApiKey, KeyHasher
from serving.domain.key_record import KeyState
from serving.errors import KeyExpired, KeyRevoked
from tests.support.keys import ACTOR, SERVER_SECRET, registry_of, store_of

OLD_TABLE = """
CREATE TABLE api_keys (
    id VARCHAR(40) NOT NULL,
    prefix VARCHAR(12) NOT NULL,
    key_hash VARCHAR(64) NOT NULL,
    "user" VARCHAR(200) NOT NULL,
    tier VARCHAR(32) NOT NULL,
    models JSON,
    created_at {moment} NOT NULL,
    expires_at {moment},
    revoked_at {moment},
    CONSTRAINT pk_api_keys PRIMARY KEY (id),
    CONSTRAINT uq_api_keys_prefix UNIQUE (prefix)
)
"""
"""As `create_all` made it."""
OLD_KEYS: dict[KeyState, tuple[str, str | None, timedelta | None, timedelta | None]] = {
    # id; models; expires and was revoked, after START
    "active": ("key_1", '["faces", "shapes"]', timedelta(days=30, microseconds=1), None),
    "expired": ("key_2", None, timedelta(seconds=-1), None),
    "revoked": ("key_3", None, None, timedelta(seconds=-1)),
}


async def make_old_database(url: str) -> dict[KeyState, ApiKey]:
    keys: dict[KeyState, ApiKey] = {state: ApiKey.generate() for state in OLD_KEYS}
    is_sqlite = url.startswith("sqlite")
    moment = "DATETIME" if is_sqlite else "TIMESTAMP WITH TIME ZONE"
    engine = create_async_engine(parse_database_url(url))

    def written(after: timedelta | None) -> str:
        return "NULL" if after is None else f"'{(START + after).strftime('%Y-%m-%d %H:%M:%S.%f')}{zone}'"

    zone = "" if is_sqlite else "+00"
    async with engine.begin() as connection:
        await connection.execute(text(OLD_TABLE.format(moment=moment)))
        for state, (key_id, models, expires, revoked) in OLD_KEYS.items():
            key = keys[state]
            row = (
                f"'{key_id}', '{key.prefix}', '{KeyHasher(SERVER_SECRET).hash(key)}', 'ada', 'pro', :models, "
                f"{written(timedelta(days=-1))}, {written(expires)}, {written(revoked)}"
            )
            models_column = ":models" if is_sqlite else "CAST(:models AS JSON)"
            await connection.execute(
                text(f"INSERT INTO api_keys VALUES ({row.replace(':models', models_column)})"),
                {"models": models},
            )
    await engine.dispose()
    return keys


async def test_old_keys_are_what_they_were_and_can_be_rotated(database_url: str, clock: ManualClock) -> None:
    keys = await make_old_database(database_url)
    database = Database(database_url)
    registry, store = registry_of(database, clock), store_of(database, clock)
    try:
        records = {record.state(clock.now()): record for record in await registry.list()}
        active = await store.authenticate(keys["active"].reveal())
        with pytest.raises(KeyExpired):
            await store.authenticate(keys["expired"].reveal())
        with pytest.raises(KeyRevoked):
            await store.authenticate(keys["revoked"].reveal())
        rotated = await registry.rotate("key_1", actor=ACTOR, overlap=timedelta(hours=1))
        clock.advance(1.0)
        both = [await store.authenticate(key.reveal()) for key in (keys["active"], rotated.api_key)]
    finally:
        await store.close()
        await database.close()

    assert records.keys() == OLD_KEYS.keys()
    for state, (key_id, _, expires, revoked) in OLD_KEYS.items():
        record = records[state]
        (secret,) = record.secrets
        assert (record.id, record.user, record.tier) == (key_id, "ada", "pro")
        assert record.created_at == secret.created_at == START - timedelta(days=1)
        assert record.expires_at == (None if expires is None else START + expires)
        assert record.revoked_at == (None if revoked is None else START + revoked)
        assert (secret.prefix, secret.expires_at) == (keys[state].prefix, None)
        assert (record.last_used_at, record.user_disabled) == (None, False)
    assert active.models == records["active"].models == frozenset({"faces", "shapes"})
    assert records["revoked"].models is None
    assert [principal.key_id for principal in both] == ["key_1", "key_1"]
