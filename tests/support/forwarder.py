"""A door that stays where it is while the servers behind it change, as a failover's virtual address does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from pydantic import SecretStr

PATIENCE_SECONDS = 20.0


class Forwarder:
    """Forwards TCP connections on `port` to another port of this machine."""

    def __init__(self, target_port: int) -> None:
        self.port = 0
        self._target_port = target_port
        self._writers: set[asyncio.StreamWriter] = set()
        self._has_carried = asyncio.Event()

    async def until_something_was_sent(self) -> None:
        """From now on, by a client: it lies in the server's buffer when this returns."""
        self._has_carried.clear()
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self._has_carried.wait()

    @property
    def redis_url(self) -> SecretStr:
        return SecretStr(f"redis://127.0.0.1:{self.port}/0")

    def lead_to(self, port: int) -> None:
        """From now on; connections that there are, are broken."""
        self._target_port = port
        self.break_connections()

    def break_connections(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def serve(self, client_reader: asyncio.StreamReader, client_writer: asyncio.StreamWriter) -> None:
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self._close, client_writer)
            self._writers.add(client_writer)
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._target_port)
            except OSError:
                return
            stack.push_async_callback(self._close, writer)
            self._writers.add(writer)
            ways = {
                asyncio.create_task(_copy(client_reader, writer, self._has_carried.set)),
                asyncio.create_task(_copy(reader, client_writer)),
            }
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)

    async def _close(self, writer: asyncio.StreamWriter) -> None:
        self._writers.discard(writer)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def forwarding(target_port: int) -> AsyncIterator[Forwarder]:
    forwarder = Forwarder(target_port)
    connections: set[asyncio.Task[None]] = set()

    def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(forwarder.serve(reader, writer))
        connections.add(task)
        task.add_done_callback(connections.discard)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    forwarder.port = server.sockets[0].getsockname()[1]
    try:
        yield forwarder
    finally:
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        await server.wait_closed()


async def _copy(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, then: Callable[[], None] = lambda: None
) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
            then()
