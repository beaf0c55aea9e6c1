"""The tier table of a running gateway: the file as it is now, or as it last was of use."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path

from serving.adapters.tiers import SHIPPED_TIERS, parse_tiers, read_table
from serving.domain.tenant import Tier
from serving.errors import OperatorError
from serving.metrics import Metrics

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0


class LiveTiers(Mapping[str, Tier]):
    """Read through: each look-up is of the table in force, which changes as a whole.

    What is compared is the file's content, so it does not matter how a change gets there: written in place,
    renamed over, or by a link that points elsewhere now (Kubernetes); nor whether within one tick of the file
    system's clock. It counts once it was the same at two looks, for until then it may be half written.

    A tier that a new table leaves out is still found by its name, as it last was, until the process is
    started again: keys are in it, whose owners have done nothing wrong. It is no longer `in` the table nor
    listed, so no new key gets into it.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        metrics: Metrics,
        wait: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """path: None is the table that ships with the gateway. wait: for so many seconds.

        Raises OperatorError for a table that cannot be used: at the start there is no last one.
        """
        self._path = path or SHIPPED_TIERS
        self._metrics = metrics
        self._wait = wait
        table = read_table(self._path)
        self._table = parse_tiers(self._path, table)
        self._left_out: Mapping[str, Tier] = {}
        self._judged: bytes | str = table
        self._last_look: bytes | str = table

    def __getitem__(self, name: str) -> Tier:
        return self._table[name] if name in self._table else self._left_out[name]

    def __contains__(self, name: object) -> bool:
        return name in self._table

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)

    async def run(self) -> None:
        """Look once a second, until cancelled. Whatever goes wrong, there is a table in force."""
        while True:
            await self._wait(POLL_SECONDS)
            try:
                await self.refresh()
            except Exception:
                logger.exception("the tier table could not be looked at")

    async def refresh(self) -> None:
        """Look once. A table that cannot be used is logged and counted, once, and the last good one stays."""
        before, self._last_look = self._last_look, await self._look()
        if self._last_look != before or self._last_look == self._judged:
            return
        self._judged = self._last_look
        if isinstance(self._judged, str):
            self._complain(self._judged)
            return
        try:
            table = parse_tiers(self._path, self._judged)
        except OperatorError as error:
            self._complain(error.detail)
        else:
            self._swap(table)

    async def _look(self) -> bytes | str:
        """The file's content, or why there is none."""
        try:
            return await asyncio.to_thread(read_table, self._path)
        except OperatorError as error:
            return error.detail

    def _complain(self, why: str) -> None:
        self._metrics.tiers_reload_failures.inc()
        logger.error("the tier table cannot be used, and the last good one stays in force: %s", why)

    def _swap(self, table: Mapping[str, Tier]) -> None:
        before = {**self._left_out, **self._table}
        self._left_out = {name: tier for name, tier in before.items() if name not in table}
        self._table = table
        logger.info("the tier table has changed: %s", ", ".join(sorted(table)))
        if self._left_out:
            logger.warning(
                "the tier table has no %s any more; until a restart, keys in there keep their terms",
                ", ".join(sorted(self._left_out)),
            )
