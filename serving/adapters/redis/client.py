"""The way to Redis: scripts, as many in one message as are called in one turn of the event loop.

Each batch of calls is one pipeline on one connection. A few batches are on their way at a time; calls that
come meanwhile gather in the next, so a Redis that writes through to its disk pays once for all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import SecretStr
from redis import exceptions
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from serving.adapters.redis.patience import STEPS, patiently
from serving.adapters.redis.scripts import Script
from serving.adapters.redis.trouble import translated, unavailable
from serving.errors import AccountsUnavailable, OperatorError
from serving.metrics import Metrics

MAX_BATCHES_IN_FLIGHT = 8
MAX_CALLS_IN_BATCH = 64
MAX_WAITING_CALLS = 4096
REPLICAS_SHARE_OF_TIMEOUT = 0.8
"""Redis waits for its replicas so long, so that its answer still reaches us in time."""

Argument = str | bytes | int
Redirected = (exceptions.AskError, exceptions.MovedError, exceptions.TryAgainError)
LostConnection = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.SlotNotCoveredError,
    OSError,
)


@dataclass(slots=True, eq=False)
class _Call:
    script: Script
    keys: Sequence[str]
    args: Sequence[Argument]
    replicas: int
    if_abandoned: Callable[[], None] | None
    reply: asyncio.Future[Any] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def command(self, *, with_text: bool) -> tuple[Argument, ...]:
        name, script = ("EVAL", self.script.text) if with_text else ("EVALSHA", self.script.sha1)
        return (name, script, len(self.keys), *self.keys, *self.args)

    def end(self, reply: Any) -> None:
        is_error = isinstance(reply, BaseException)
        if not self.reply.done():
            self.reply.set_exception(reply) if is_error else self.reply.set_result(reply)
        elif self.if_abandoned is not None and not is_error:
            self.if_abandoned()


class RedisConnection:
    """Belongs to one event loop. `redis` is the client itself, for commands that are no scripts.

    Whoever uses that goes through `translated`, so that nobody else meets an error of redis-py's.
    """

    def __init__(
        self,
        url: SecretStr,
        *,
        timeout_seconds: float,
        metrics: Metrics,
        max_waiting_calls: int = MAX_WAITING_CALLS,
    ) -> None:
        """url: `redis://`, `rediss://` or `unix://`, or of any node of a cluster `redis+cluster://` or
        `rediss+cluster://`. timeout_seconds: of one call, from being made to its reply.

        Raises OperatorError for another URL.
        """
        self.redis = _client(url, timeout_seconds)
        self.metrics = metrics
        self._timeout_seconds = timeout_seconds
        self._max_waiting_calls = max_waiting_calls
        self._waiting: deque[_Call] = deque()
        self._is_about_to_send = False
        self._is_closed = False
        self._in_flight: set[asyncio.Task[None]] = set()

    async def run(
        self,
        script: Script,
        keys: Sequence[str],
        args: Sequence[Argument] = (),
        *,
        replicas: int = 0,
        if_abandoned: Callable[[], None] | None = None,
    ) -> Any:
        """What the script returns, once `replicas` have what it wrote. All keys are of one partition.

        if_abandoned: called where it did run, and whoever asked had left by then.

        Raises AccountsUnavailable: the script may have run all the same, but where Redis refused it.
        """
        with translated(self.metrics):
            if self._is_closed:
                raise unavailable("down")
            if len(self._waiting) >= self._max_waiting_calls:
                raise unavailable("slow")
            call = _Call(script, keys, args, replicas, if_abandoned)
            self._waiting.append(call)
            self._send_soon()
            async with patiently(self._timeout_seconds):
                return await call.reply

    def unprimed(self) -> AccountsUnavailable:
        """What to raise where a script finds no epoch; it is counted."""
        error = unavailable("unprimed")
        self.metrics.accounts_failures.labels(error.reason).inc()
        return error

    async def close(self) -> None:
        """What is under way fails."""
        self._is_closed = True
        while self._waiting:
            self._waiting.popleft().end(exceptions.ConnectionError("closed"))
        for task in self._in_flight:
            task.cancel()
        await asyncio.gather(*self._in_flight, return_exceptions=True)
        await self.redis.aclose()
        if isinstance(self.redis, RedisCluster):
            # It takes itself for closed while it is about to learn the cluster anew.
            await self.redis.nodes_manager.aclose()

    def _send_soon(self) -> None:
        if self._waiting and not self._is_about_to_send and len(self._in_flight) < MAX_BATCHES_IN_FLIGHT:
            self._is_about_to_send = True
            asyncio.get_running_loop().call_soon(self._send)

    def _send(self) -> None:
        self._is_about_to_send = False
        taken = (self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_CALLS_IN_BATCH)))
        calls = [call for call in taken if not call.reply.done()]
        if calls:
            task = asyncio.create_task(self._exchange(calls))
            self._in_flight.add(task)
            task.add_done_callback(functools.partial(self._has_ended, calls))
        self._send_soon()

    def _has_ended(self, calls: Sequence[_Call], task: asyncio.Task[None]) -> None:
        self._in_flight.discard(task)
        for call in calls:  # those without a reply: it was cancelled, perhaps before it had begun
            call.end(exceptions.ConnectionError("closed"))
        self._send_soon()

    async def _exchange(self, calls: Sequence[_Call]) -> None:
        try:
            async with patiently(self._timeout_seconds):
                replies = await self._replies(calls)
                await self._learn_the_cluster_anew(replies)
        except Exception as exc:  # whatever it is: each caller gets it, and `run` translates it
            await self._learn_the_cluster_anew([exc])
            replies = [exc] * len(calls)
        for call, reply in zip(calls, replies, strict=True):
            call.end(reply)

    async def _replies(self, calls: Sequence[_Call], *, with_text: bool = False) -> list[Any]:
        """An exception in place of a reply that is one. Scripts that Redis does not know are sent in full."""
        if isinstance(self.redis, RedisCluster):
            replies = await self._cluster_replies(self.redis, calls, with_text=with_text)
        else:
            replies = await self._server_replies(self.redis, calls, with_text=with_text)
        unknown = [n for n, reply in enumerate(replies) if isinstance(reply, exceptions.NoScriptError)]
        if unknown and not with_text:
            again = await self._replies([calls[n] for n in unknown], with_text=True)
            for n, reply in zip(unknown, again, strict=True):
                replies[n] = reply
        return replies

    async def _server_replies(self, redis: Redis, calls: Sequence[_Call], *, with_text: bool) -> list[Any]:
        pipeline = redis.pipeline(transaction=False)
        for call in calls:
            pipeline.execute_command(*call.command(with_text=with_text))
        replicas = max(call.replicas for call in calls)
        if replicas:
            # After the last, for Redis holds back what follows on the connection until it has waited.
            pipeline.execute_command(*self._wait_for(replicas))
        replies = await pipeline.execute(raise_on_error=False)
        waited = replies.pop() if replicas else 0
        return [_confirmed(call, reply, waited) for call, reply in zip(calls, replies, strict=True)]

    async def _cluster_replies(
        self, cluster: RedisCluster, calls: Sequence[_Call], *, with_text: bool
    ) -> list[Any]:
        await cluster.initialize()
        pipeline = cluster.pipeline()
        for call in calls:
            pipeline.execute_command(*call.command(with_text=with_text))
        waiting = [call for call in calls if call.replicas]
        nodes = {node.name: node for call in waiting if (node := cluster.get_node_from_key(call.keys[0]))}
        replicas = max((call.replicas for call in waiting), default=0)
        for node in nodes.values():
            pipeline.execute_command(*self._wait_for(replicas), target_nodes=node)
        replies = await pipeline.execute(raise_on_error=False, allow_redirections=False)
        waited = dict(zip(nodes, replies[len(calls) :], strict=True))
        return [
            await self._cluster_reply(cluster, call, reply, waited, with_text=with_text)
            for call, reply in zip(calls, replies, strict=False)
        ]

    async def _cluster_reply(
        self, cluster: RedisCluster, call: _Call, reply: Any, waited: dict[str, Any], *, with_text: bool
    ) -> Any:
        if isinstance(reply, Redirected):
            try:
                reply = await cluster.execute_command(*call.command(with_text=with_text))
            except exceptions.RedisError as exc:
                return exc
            # It went to another node than the one that we asked about its replicas.
            return _confirmed(call, reply, 0)
        node = cluster.get_node_from_key(call.keys[0])
        return _confirmed(call, reply, waited.get(node.name, 0) if node else 0)

    async def _learn_the_cluster_anew(self, replies: Iterable[Any]) -> None:
        """Where a node does not answer, another may have taken over; a pipeline does not look by itself."""
        lost = any(isinstance(reply, LostConnection) for reply in replies)
        if lost and isinstance(self.redis, RedisCluster):
            with contextlib.suppress(*LostConnection):
                await self.redis.aclose()

    def _wait_for(self, replicas: int) -> tuple[Argument, ...]:
        timeout_milliseconds = max(1, int(self._timeout_seconds * REPLICAS_SHARE_OF_TIMEOUT * 1000))
        return ("WAIT", replicas, timeout_milliseconds)


def _confirmed(call: _Call, reply: Any, waited: Any) -> Any:
    """The reply, or why it does not count: fewer replicas have it than it takes to survive a failover."""
    if not call.replicas or isinstance(reply, BaseException):
        return reply
    if isinstance(waited, BaseException):
        return waited
    return reply if waited >= call.replicas else unavailable("failing_over")


def _client(url: SecretStr, timeout_seconds: float) -> Redis | RedisCluster:
    scheme, _, rest = url.get_secret_value().partition("://")
    options: dict[str, Any] = {
        # Longer than we wait: it would not tell a Redis that is slow from a process that is.
        "socket_timeout": STEPS * timeout_seconds,
        "socket_connect_timeout": timeout_seconds,
        # Whether to ask again is the fallback's to decide: a script may have run before its reply was lost.
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
    }
    try:
        if scheme.endswith("+cluster"):
            # A slot that has moved is looked for where its node says, and nothing is closed for it.
            options["reinitialize_steps"] = 0
            return RedisCluster.from_url(f"{scheme.removesuffix('+cluster')}://{rest}", **options)
        return Redis.from_url(f"{scheme}://{rest}", **options)
    except (ValueError, exceptions.RedisClusterException):
        # What it says may quote the password.
        raise OperatorError("VISIONGATE_REDIS_URL is not the URL of a Redis.") from None
