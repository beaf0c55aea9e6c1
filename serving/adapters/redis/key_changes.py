"""Changed keys, told to every gateway over a channel of Redis.

`PUBLISH` reaches every node of a cluster, so a gateway may listen at any of them. A message is JSON:
`{"user": "ada", "key_id": "key_…"}`, with null for all of a user's keys. It makes whoever hears it look
again, and nothing else: there is nothing to gain by forging one.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

from redis.asyncio import RedisCluster
from redis.asyncio.client import PubSub

from serving.adapters.background import is_cancelled
from serving.adapters.key_changes import KeyChangeListener
from serving.adapters.redis.client import RedisConnection
from serving.adapters.redis.keyspace import KEY_CHANGES
from serving.adapters.redis.trouble import translated
from serving.domain.key_change import ChangedKeys
from serving.errors import AccountsUnavailable
from serving.ports import Clock

PUBLISH_TIMEOUT_SECONDS = 1.0
PING_SECONDS = 0.25
PONG_TIMEOUT_SECONDS = 0.5
"""With `PING_SECONDS` less than a second: so soon is it known that a subscription is dead."""
RETRY_SECONDS = 0.25

logger = logging.getLogger(__name__)


class RedisKeyChanges:
    """`KeyChangePublisher` for gateways that listen to the same Redis."""

    def __init__(self, connection: RedisConnection) -> None:
        self._connection = connection

    async def publish(self, keys: ChangedKeys) -> bool:
        message = json.dumps({"user": keys.user, "key_id": keys.key_id})
        try:
            with translated(self._connection.metrics):
                async with asyncio.timeout(PUBLISH_TIMEOUT_SECONDS):
                    await self._connection.redis.publish(KEY_CHANGES, message)
        except AccountsUnavailable as error:
            logger.warning("a changed key was not published", extra={"facts": {"why": error.detail}})
            return False
        return True


class KeyChangeSubscription:
    """Tells a listener what is published, and confirms that nothing else was published.

    What was published before Redis answers a ping lies before the answer on the same connection, so the
    answer confirms the moment at which the ping was sent. Whenever a subscription begins, also one that
    redis-py has begun anew by itself, messages may have been missed and everything is forgotten.
    """

    def __init__(self, connection: RedisConnection, listener: KeyChangeListener, clock: Clock) -> None:
        self._connection = connection
        self._listener = listener
        self._clock = clock
        self._pings = 0
        self._is_heard = True

    async def run(self) -> None:
        """Until cancelled, whatever becomes of Redis meanwhile."""
        while not is_cancelled():
            try:
                await self._listen()
            except AccountsUnavailable as error:
                if self._is_heard:  # once, not four times a second
                    logger.warning("changed keys are not heard of", extra={"facts": {"why": error.detail}})
                self._is_heard = False
            await asyncio.sleep(RETRY_SECONDS)

    async def _listen(self) -> None:
        redis = self._connection.redis
        with translated(self._connection.metrics):
            if isinstance(redis, RedisCluster):
                async with asyncio.timeout(PONG_TIMEOUT_SECONDS):
                    await redis.initialize()
            async with redis.pubsub() as subscription:
                async with asyncio.timeout(PONG_TIMEOUT_SECONDS):
                    await subscription.subscribe(KEY_CHANGES)
                while not is_cancelled():
                    asked_at = self._clock.monotonic()
                    await self._ping(subscription)
                    self._listener.confirm_published(asked_at)
                    self._is_heard = True
                    await self._hear(subscription, PING_SECONDS)

    async def _ping(self, subscription: PubSub) -> None:
        """Returns with the answer; all that came before it has been told by then."""
        self._pings += 1
        ping = str(self._pings).encode()
        async with asyncio.timeout(PONG_TIMEOUT_SECONDS):
            await subscription.ping(ping)
            while (message := await subscription.get_message(timeout=None)) is None or (
                message["type"] != "pong" or message["data"] != ping
            ):
                self._take(message)

    async def _hear(self, subscription: PubSub, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + seconds
        while (left_seconds := ends_at - loop.time()) > 0:
            self._take(await subscription.get_message(timeout=left_seconds))

    def _take(self, message: dict[str, Any] | None) -> None:
        match message:
            case {"type": "subscribe"}:
                self._listener.forget_all()
            case {"type": "message", "data": bytes(data)}:
                keys = _changed_keys(data)
                if keys is None:
                    self._listener.forget_all()
                else:
                    self._listener.forget(keys)


def _changed_keys(data: bytes) -> ChangedKeys | None:
    """None for a message that is none of ours, whatever it may have meant."""
    try:
        match json.loads(data):
            case {"user": str(user), "key_id": str() | None as key_id}:
                return ChangedKeys(user, key_id)
    except ValueError:
        pass
    logger.warning("a message on %s is none of ours: all keys are looked up again", KEY_CHANGES)
    return None
