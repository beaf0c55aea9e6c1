"""The safety net below published changes: a cheap query, four times a second, whatever the number of keys."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from sqlalchemy import Row, Select, select

from serving.adapters.key_changes import KeyDatabaseListener
from serving.adapters.sql.database import Database
from serving.adapters.sql.key_tables import KeyChangeRow
from serving.domain.key_change import ChangedKeys
from serving.errors import BackendUnavailable
from serving.ports import Clock

MAX_ANSWER_AGE_SECONDS = 1.0
"""How long a gateway believes what it has read of a key, unless that is confirmed."""
LOOK_SECONDS = 0.25
LOOK_TIMEOUT_SECONDS = 1.0
MOST_CHANGES = 1_000
"""Read at a time; were there more, everything is forgotten instead."""

_NOBODY_LISTENS = (ConnectionRefusedError, FileNotFoundError)
"""The operating system's word, at once, that there is no server at the address; or no socket of one."""

log = logging.getLogger(__name__)

_FOUND = (KeyChangeRow.id, KeyChangeRow.at, KeyChangeRow.user, KeyChangeRow.key_id)
_Found: TypeAlias = "Row[int, datetime, str, str | None]"


@dataclass(frozen=True, slots=True)
class _Mark:
    """The newest change that is known. `id` 0: there was none at all."""

    id: int = 0
    at: datetime | None = None


class KeyChangeWatch:
    """Tells a listener what has changed since the last look, and that nothing else has.

    Ids count up in the order of the commits, so what is found behind the newest known one is all there is.
    """

    def __init__(self, database: Database, listener: KeyDatabaseListener, clock: Clock) -> None:
        self._database = database
        self._listener = listener
        self._clock = clock
        self._mark: _Mark | None = None

    async def look(self) -> None:
        """Raises BackendUnavailable, and then it is confirmed at most that the database is closed."""
        began_at = self._clock.monotonic()
        try:
            await self._look()
        except BackendUnavailable as error:
            if isinstance(error.__cause__, _NOBODY_LISTENS):
                self._listener.confirm_closed(began_at)
            raise

    async def _look(self) -> None:
        mark = self._mark
        if mark is None:
            asked_at, newest = await self._ask(select(*_FOUND).order_by(KeyChangeRow.id.desc()).limit(1))
            self._start_over(newest)
        else:
            behind = select(*_FOUND).where(KeyChangeRow.id >= mark.id).order_by(KeyChangeRow.id)
            asked_at, found = await self._ask(behind.limit(MOST_CHANGES))
            if not self._tell(mark, found):
                return
        self._listener.confirm(asked_at)

    async def _ask(self, query: Select[int, datetime, str, str | None]) -> tuple[float, Sequence[_Found]]:
        async with self._database.reading() as session, asyncio.timeout(LOOK_TIMEOUT_SECONDS):
            await session.connection()
            asked_at = self._clock.monotonic()
            return asked_at, (await session.execute(query)).all()

    def _tell(self, mark: _Mark, found: Sequence[_Found]) -> bool:
        """False where it is not known what has changed."""
        if mark.id:
            # A table that was restored or moved to another server may count anew: then the mark is not in it.
            if not found or _Mark(found[0].id, found[0].at) != mark:
                log.warning("the audit table is another one: all keys are looked up again")
                return self._lose_track()
            found = found[1:]
        if len(found) >= MOST_CHANGES - 1:
            return self._lose_track()
        for row in found:
            self._listener.forget(ChangedKeys(row.user, row.key_id))
        if found:
            self._mark = _Mark(found[-1].id, found[-1].at)
        return True

    def _lose_track(self) -> bool:
        self._mark = None
        self._listener.forget_all()
        return False

    def _start_over(self, newest: Sequence[_Found]) -> None:
        # What changed before this look was never told.
        self._listener.forget_all()
        self._mark = _Mark(newest[0].id, newest[0].at) if newest else _Mark()
