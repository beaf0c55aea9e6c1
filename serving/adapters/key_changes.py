"""How a changed key comes to count on every gateway within a second.

::

    KeyRegistry ── commits ──► key_changes (SQL) ◄── asked four times a second by each gateway: the safety net
         └──────── publishes ► vg:key-changes (Redis) ──► each gateway forgets the key at once

Whoever keeps records for a while is a `KeyChangeListener`. It forgets what it is told of, and keeps the rest
for longer than a second only while it is told, again and again, that nothing else has changed. The database
can tell, for it has every change. Redis cannot, for a change may be committed and not published: what it says
counts only while the database takes no connections, so that nobody can commit one.

A change that could not be published therefore stands for a while before its command returns, in a database
that is there all that time: longer than a gateway goes without a look or the key. None of them can be one for
which the database was down ever since the change.
"""

from __future__ import annotations

from typing import Protocol

from serving.domain.key_change import ChangedKeys


class KeyChangePublisher(Protocol):
    async def publish(self, keys: ChangedKeys) -> bool:
        """Tell every gateway of a change that is committed. Never raises.

        False where it could not be told; gateways then find it in the database, or do without what they keep.
        """


class KeyChangeListener(Protocol):
    def forget(self, keys: ChangedKeys) -> None: ...

    def forget_all(self) -> None:
        """Changes may have been missed: until now, nothing is known to hold."""

    def confirm_published(self, moment: float) -> None:
        """No change that was published before that moment, on `Clock.monotonic`'s line, is unknown to this
        listener.
        """


class KeyDatabaseListener(KeyChangeListener, Protocol):
    def confirm(self, moment: float) -> None:
        """No change at all before that moment, on `Clock.monotonic`'s line, is unknown to this listener."""

    def confirm_closed(self, moment: float) -> None:
        """At that moment the database took no connections."""


class LocalKeyChanges:
    """`KeyChangePublisher` for the listeners of this process, if there are any."""

    def __init__(self, *listeners: KeyChangeListener) -> None:
        self._listeners = listeners

    async def publish(self, keys: ChangedKeys) -> bool:
        for listener in self._listeners:
            listener.forget(keys)
        return True
