"""When each key was used last, written down for many requests at a time."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import bindparam, or_, update

from serving.adapters.sql.base import Table
from serving.adapters.sql.database import Database
from serving.adapters.sql.key_tables import ApiKeyRow

WRITE_SECONDS = 15.0
MAX_NOTED_KEYS = 10_000

_KEYS = Table.metadata.tables[ApiKeyRow.__tablename__]
_WRITE_DOWN = (
    update(_KEYS)
    .where(
        _KEYS.c.id == bindparam("key"),
        or_(_KEYS.c.last_used_at.is_(None), _KEYS.c.last_used_at < bindparam("used_at")),
    )
    .values(last_used_at=bindparam("used_at"))
)


class KeyUses:
    """`last_used_at` is at most `WRITE_SECONDS` behind, and never goes back, whichever gateway writes."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._noted: dict[str, datetime] = {}

    def note(self, key_id: str, used_at: datetime) -> None:
        if key_id in self._noted or len(self._noted) < MAX_NOTED_KEYS:
            self._noted[key_id] = used_at

    async def write_down(self) -> None:
        """Raises BackendUnavailable, and then all is still noted for the next time."""
        # Two gateways that lock rows in one order never wait for each other in a circle.
        written = dict(sorted(self._noted.items()))
        if not written:
            return
        async with self._database.writing() as session:
            await session.execute(
                _WRITE_DOWN, [{"key": key_id, "used_at": used_at} for key_id, used_at in written.items()]
            )
        for key_id, used_at in written.items():
            if self._noted.get(key_id) == used_at:
                del self._noted[key_id]
