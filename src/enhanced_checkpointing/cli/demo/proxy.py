"""A small TCP proxy between the demo and a PostgreSQL that is not ours to kill: it forwards, refuses or hangs."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

__all__ = ["Proxy"]


class Proxy:
    """Forwards 127.0.0.1:`port` to a host, or to the folder of a Unix socket where `host` begins with a slash."""

    def __init__(self, host: str, target_port: int) -> None:
        self._host = host
        self._target_port = target_port
        self._passing = asyncio.Event()
        self._passing.set()
        self._server: asyncio.Server | None = None
        self._links: set[asyncio.Task[None]] = set()
        self.port = 0

    async def forward(self) -> None:
        """Let everything through, also what was held back."""
        self._passing.set()
        if self._server is None:
            # The first time the kernel chooses the port, which is then kept.
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Cut every connection and accept no new one."""
        if self._server is not None:
            self._server.close()
            self._server = None
        links = set(self._links)
        for link in links:
            link.cancel()
        if links:
            await asyncio.wait(links)

    def hang(self) -> None:
        """Keep every connection open and let nothing through."""
        self._passing.clear()

    async def __aenter__(self) -> Self:
        await self.forward()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.refuse()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = asyncio.current_task()
        assert link is not None
        self._links.add(link)
        link.add_done_callback(self._links.discard)
        try:
            await self._link(reader, writer)
        except* (OSError, asyncio.CancelledError):
            pass  # a connection that breaks, or that refuse() cut, is what the demo is about
        finally:
            writer.transport.abort()

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._passing.wait()
        if self._host.startswith("/"):
            path = f"{self._host}/.s.PGSQL.{self._target_port}"
            server_reader, server_writer = await asyncio.open_unix_connection(path)
        else:
            server_reader, server_writer = await asyncio.open_connection(self._host, self._target_port)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._carry(reader, server_writer))
                group.create_task(self._carry(server_reader, writer))
        finally:
            server_writer.transport.abort()

    async def _carry(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while chunk := await source.read(65_536):
            await self._passing.wait()
            target.write(chunk)
            await target.drain()
        await self._passing.wait()
        raise ConnectionResetError("one end is closed, so the other is cut too")
