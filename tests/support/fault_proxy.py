"""A TCP proxy that makes the faults of a network: refuse, black-hole, reset, delay, cut a reply short, lose a reply."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit, urlunsplit

from enhanced_checkpointing.cli.demo.postgres_server import free_port

_CHUNK = 65_536
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER of zero seconds: closing sends RST instead of FIN


@dataclass
class _Link:
    """One client's connection and its twin to the server."""

    client: socket.socket
    passing: asyncio.Event
    """Cleared while it is in the black hole."""
    server: socket.socket = field(default_factory=socket.socket)
    loses_reply: bool = False
    ends: bool = False

    def close(self, *, reset: bool) -> None:
        for end in (self.client, self.server):
            if reset:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            end.close()


class FaultProxy:
    """Forwards `address`:`port` to (`host`, `target_port`); the mode can be switched while connections are open.

    The methods are called on the event loop that runs the proxy; `ThreadedFaultProxy` has the same ones for others.
    A connection that was reset is gone a few rounds of the loop later: `settled()` waits for it.
    """

    def __init__(self, host: str, target_port: int, *, address: str = "127.0.0.1", port: int | None = None) -> None:
        self.host = host
        self.target_port = target_port
        self.address = address
        self.port = port or free_port()
        self._listener: socket.socket | None = None
        self._group = asyncio.TaskGroup()
        self._links: dict[asyncio.Task[bool], _Link] = {}
        self._passing = asyncio.Event()
        self._latency = 0.0
        self._reply_bytes_left: int | None = None
        self._request_without_reply: bytes | None = None

    def url(self, original_url: str) -> str:
        """`original_url` with the proxy's host and port in it."""
        parts = urlsplit(original_url)
        user, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{user}{at}{self.address}:{self.port}"))

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._links)

    def forward(self) -> None:
        """Heal: listen on the same port again, forget every fault, and let arrive what was held back."""
        self._latency, self._reply_bytes_left, self._request_without_reply = 0.0, None, None
        self._passing.set()
        if self._listener is None:
            self._listener = socket.create_server((self.address, self.port), backlog=128)
            self._listener.setblocking(False)
            asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)

    def forward_only_new(self) -> None:
        """Heal for new connections; those that are in the black hole stay there."""
        self._passing = asyncio.Event()
        self.forward()

    def refuse(self) -> None:
        """Close the listener and reset what is open: connecting is refused."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        self.reset()

    def black_hole(self) -> None:
        """Open connections stay open and new ones are accepted, but nothing arrives on either side."""
        self._passing.clear()

    def reset(self) -> None:
        """Reset every open connection once; new ones work."""
        for task in self._links:
            task.cancel()

    async def settled(self) -> None:
        """Wait until every connection that was reset is gone."""
        if going := [task for task in self._links if task.cancelling()]:
            await asyncio.wait(going)

    def delay(self, seconds: float) -> None:
        """Let everything arrive `seconds` later, in each direction, in order and with the throughput unchanged."""
        self._latency = seconds

    def cut_after(self, reply_bytes: int) -> None:
        """Let `reply_bytes` more bytes of replies pass and then, once, reset the connection that got the last."""
        self._reply_bytes_left = reply_bytes

    def drop_replies(self, request: bytes = b"") -> None:
        """Lose, once, the reply to the next chunk of bytes that contains `request`, and reset its connection.

        The client is reset after the server has worked off everything that it got on this connection.
        """
        self._request_without_reply = request

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self.forward()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.refuse()
        await self._group.__aexit__(None, None, None)  # the body's error is the caller's, and not to be wrapped

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):  # the client gave up before we came
            client, _ = listener.accept()
            link = _Link(client, self._passing)
            task = self._group.create_task(self._serve(link))
            self._links[task] = link
            task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[bool]) -> None:
        # Here and not in the task, because one that is cancelled before its first step runs no `finally`.
        ended_well = not task.cancelled() and task.exception() is None and task.result()
        self._links.pop(task).close(reset=not ended_well)

    async def _serve(self, link: _Link) -> bool:
        """Carry both directions to their ends; False if one broke: then the other is to be reset."""
        ended_well = True
        try:
            for end in (link.client, link.server):
                end.setblocking(False)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await link.passing.wait()
            await asyncio.get_running_loop().sock_connect(link.server, (self.host, self.target_port))
            async with asyncio.TaskGroup() as group:
                group.create_task(self._carry(link, link.client, link.server, self._deliver_request))
                group.create_task(self._carry(link, link.server, link.client, self._deliver_reply))
        except* OSError:
            ended_well = False
        return ended_well

    async def _carry(
        self,
        link: _Link,
        source: socket.socket,
        target: socket.socket,
        deliver: Callable[[_Link, bytes], Awaitable[None]],
    ) -> None:
        loop = asyncio.get_running_loop()
        arrivals: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=1024)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._receive(link, source, arrivals))
            chunk = b"not the end"
            while chunk:
                due, chunk = await arrivals.get()
                if (pause := due - loop.time()) > 0:
                    await asyncio.sleep(pause)
                await link.passing.wait()
                if chunk:
                    await deliver(link, chunk)
            if link.ends:
                raise ConnectionResetError("the reply was lost")
            target.shutdown(socket.SHUT_WR)

    async def _receive(self, link: _Link, source: socket.socket, arrivals: asyncio.Queue[tuple[float, bytes]]) -> None:
        loop = asyncio.get_running_loop()
        chunk = b"not the end"
        while chunk:
            try:
                chunk = await loop.sock_recv(source, _CHUNK)
            except OSError:
                await link.passing.wait()  # a black hole swallows a reset too
                raise
            await arrivals.put((loop.time() + self._latency, chunk))

    async def _deliver_request(self, link: _Link, chunk: bytes) -> None:
        if self._request_without_reply is not None and self._request_without_reply in chunk:
            self._request_without_reply = None
            link.loses_reply = True
        if not link.ends:
            await asyncio.get_running_loop().sock_sendall(link.server, chunk)

    async def _deliver_reply(self, link: _Link, chunk: bytes) -> None:
        if link.ends:
            return
        if link.loses_reply:
            link.ends = True
            link.server.shutdown(socket.SHUT_WR)  # the server finishes what it has and closes: that ends the link
            return
        loop = asyncio.get_running_loop()
        if self._reply_bytes_left is None:
            await loop.sock_sendall(link.client, chunk)
            return
        head = chunk[: self._reply_bytes_left]
        self._reply_bytes_left -= len(head)
        last = self._reply_bytes_left == 0
        if last:
            self._reply_bytes_left = None
        await loop.sock_sendall(link.client, head)
        if last:
            raise ConnectionResetError("the reply was cut")


class ThreadedFaultProxy:
    """A `FaultProxy` on a loop and a thread of its own, for synchronous tests and for those that stall their loop.

    Each method returns when the switch is done and what it reset is gone.
    """

    def __init__(self, host: str, target_port: int) -> None:
        self._proxy = FaultProxy(host, target_port)
        self._thread = threading.Thread(target=self._run, name="fault-proxy")
        self._loop: Future[asyncio.AbstractEventLoop] = Future()
        self._stop = asyncio.Event()
        self.port = self._proxy.port
        self.url = self._proxy.url

    def forward(self) -> None:
        self._call(self._proxy.forward)

    def refuse(self) -> None:
        self._call(self._proxy.refuse)

    def black_hole(self) -> None:
        self._call(self._proxy.black_hole)

    def reset(self) -> None:
        self._call(self._proxy.reset)

    def delay(self, seconds: float) -> None:
        self._call(lambda: self._proxy.delay(seconds))

    def cut_after(self, reply_bytes: int) -> None:
        self._call(lambda: self._proxy.cut_after(reply_bytes))

    def drop_replies(self, request: bytes = b"") -> None:
        self._call(lambda: self._proxy.drop_replies(request))

    def __enter__(self) -> Self:
        self._thread.start()
        self._loop.result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._loop.result().call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except OSError as error:
            self._loop.set_exception(error)  # the port was taken: for whoever waits in __enter__

    async def _serve(self) -> None:
        async with self._proxy:
            self._loop.set_result(asyncio.get_running_loop())
            await self._stop.wait()

    def _call(self, switch: Callable[[], None]) -> None:
        async def switch_and_settle() -> None:
            switch()
            await self._proxy.settled()

        asyncio.run_coroutine_threadsafe(switch_and_settle(), self._loop.result()).result()
