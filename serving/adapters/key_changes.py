"""How a changed key comes to count on every gateway within a second.

::

    KeyRegistry ── commits ──► key_changes (SQL) ◄── asked every half second by each gateway: the safety net
         └──────── publishes ► vg:key-changes (Redis) ──► each gateway forgets the key at once

Whoever keeps records for a while is a `KeyChangeListener`. It forgets what it is told of, and keeps the rest
for longer than a second only while it is told, again and again, that nothing else has changed.
"""

from __future__ import annotations

from typing import Protocol

from serving.domain.key_change import ChangedKeys


class KeyChangePublisher(Protocol):
    async def publish(self, keys: ChangedKeys) -> bool:
        """Tell every gateway of a change that is committed. Never raises.

        False where it could not be told; gateways then find it in the database, within a second.
        """


class KeyChangeListener(Protocol):
    def forget(self, keys: ChangedKeys) -> None: ...

    def forget_all(self) -> None:
        """Changes may have been missed: until now, nothing is known to hold."""

    def confirm(self, moment: float) -> None:
        """No change before that moment, on `Clock.monotonic`'s line, is unknown to this listener."""


class LocalKeyChanges:
    """`KeyChangePublisher` for the listeners of this process, if there are any."""

    def __init__(self, *listeners: KeyChangeListener) -> None:
        self._listeners = listeners

    async def publish(self, keys: ChangedKeys) -> bool:
        for listener in self._listeners:
            listener.forget(keys)
        return True
