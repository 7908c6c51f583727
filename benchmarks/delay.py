"""A TCP proxy in a process of its own that lets everything arrive later, in order and with the throughput unchanged.

Its delays are exact to some 0.1 ms, which the usual event loop's are not: `epoll` waits for whole milliseconds. That is
why this is not the fault proxy of the tests, which is made for faults and costs several times as much per packet.
"""

from __future__ import annotations

import asyncio
import selectors
import subprocess
import sys
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit, urlunsplit


class DelayProxy:
    """Forwards a port of 127.0.0.1 to `target_port`, each direction `one_way` seconds later, while the block runs."""

    def __init__(self, target_port: int, one_way: float) -> None:
        self._command = [sys.executable, str(Path(__file__)), str(target_port), str(one_way)]
        self._process: subprocess.Popen[str] | None = None
        self.port = 0

    def url(self, original_url: str) -> str:
        """`original_url` with the proxy's port in it."""
        parts = urlsplit(original_url)
        user, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{user}{at}127.0.0.1:{self.port}"))

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.communicate(timeout=10)  # closes its standard input, upon which it ends


class _Direction:
    """What is on its way from one end to the other."""

    def __init__(self, one_way: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._one_way = one_way
        self._on_the_way: deque[tuple[float, bytes]] = deque()
        self._target: asyncio.WriteTransport | None = None

    def lead_to(self, target: asyncio.WriteTransport) -> None:
        self._target = target
        self._deliver()

    def send(self, data: bytes) -> None:
        """Let `data` arrive later; nothing means that the connection ends."""
        self._on_the_way.append((self._loop.time() + self._one_way, data))
        if len(self._on_the_way) == 1:
            self._loop.call_at(self._on_the_way[0][0], self._deliver)

    def _deliver(self) -> None:
        if self._target is None:
            return
        while self._on_the_way:
            due, data = self._on_the_way[0]
            if due > self._loop.time():
                self._loop.call_at(due, self._deliver)
                return
            self._on_the_way.popleft()
            if data:
                self._target.write(data)
            else:
                self._target.close()


class _End(asyncio.Protocol):
    """One end of a connection: what comes in here goes out at the other."""

    def __init__(self, to_other: _Direction, to_here: _Direction) -> None:
        self._to_other = to_other
        self._to_here = to_here

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._to_here.lead_to(transport)

    def data_received(self, data: bytes) -> None:
        self._to_other.send(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._to_other.send(b"")


async def _serve(target_port: int, one_way: float) -> None:
    loop = asyncio.get_running_loop()
    connecting: set[asyncio.Task[object]] = set()

    def accept() -> _End:
        requests, replies = _Direction(one_way), _Direction(one_way)
        connect = loop.create_connection(lambda: _End(replies, requests), "127.0.0.1", target_port)
        task: asyncio.Task[object] = loop.create_task(connect)
        connecting.add(task)
        task.add_done_callback(connecting.discard)
        return _End(requests, replies)

    server = await loop.create_server(accept, "127.0.0.1", 0, backlog=256)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)  # until whoever started this closes it, or is gone
    server.close()


def _exact_loop() -> asyncio.AbstractEventLoop:
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=_exact_loop) as runner:
        runner.run(_serve(int(sys.argv[1]), float(sys.argv[2])))
