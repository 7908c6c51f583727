"""A manager with short times, for tests that make its primary fail, and primaries that can be switched off for real."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from langgraph.checkpoint.base import BaseCheckpointSaver

from enhanced_checkpointing import (
    CheckpointerConfig,
    EnhancedCheckpointerManager,
    create_memory_checkpointer,
    create_postgres_checkpointer,
    create_sqlite_checkpointer,
)
from enhanced_checkpointing.testing import make_flaky
from tests.support.fault_proxy import FaultProxy

FAST: dict[str, Any] = {
    "deadline": 1.0,
    "probe_interval": 0.5,
    "probe_backoff_min": 0.05,
    "probe_backoff_max": 0.2,
    "shutdown_grace": 0.3,
}
"""Settings under which a fault test waits for moments, not for seconds."""


@asynccontextmanager
async def opened(config: CheckpointerConfig) -> AsyncIterator[EnhancedCheckpointerManager]:
    """A manager that is open, and closed at the end."""
    async with EnhancedCheckpointerManager(config) as manager:
        yield manager


def postgres(url: str, **fields: Any) -> CheckpointerConfig:
    """PostgreSQL with short times."""
    return create_postgres_checkpointer(url, **{**FAST, **fields})


def sqlite(path: Path | str, **fields: Any) -> CheckpointerConfig:
    """SQLite with short times."""
    return create_sqlite_checkpointer(str(path), **{**FAST, **fields})


def saver_of(manager: EnhancedCheckpointerManager) -> BaseCheckpointSaver[str]:
    """The manager's saver, which is there since it is enabled."""
    saver = manager.get_checkpointer()
    assert saver is not None
    return saver


async def eventually(condition: Callable[[], bool], within: float = 10.0) -> None:
    """Wait until `condition()` is true; fail when it is not after `within` seconds."""
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110  # what is waited for signals nothing
            await asyncio.sleep(0.01)


async def recovered(manager: EnhancedCheckpointerManager, within: float = 15.0) -> None:
    """Wait until the primary takes writes again and the journal is empty."""
    await eventually(lambda: manager.health_status["primary_healthy"], within)
    assert await manager.wait_drained(within), manager.health_status


class Switched(Protocol):
    """A primary that can be switched off and on."""

    manager: EnhancedCheckpointerManager

    async def off(self) -> None: ...

    async def on(self) -> None: ...


class SwitchedPostgres:
    """PostgreSQL behind a proxy that refuses connections."""

    def __init__(self, manager: EnhancedCheckpointerManager, proxy: FaultProxy) -> None:
        self.manager = manager
        self._proxy = proxy

    async def off(self) -> None:
        self._proxy.refuse()
        await self._proxy.settled()

    async def on(self) -> None:
        self._proxy.forward()


class SwitchedSqlite:
    """A SQLite file that another connection holds locked."""

    def __init__(self, manager: EnhancedCheckpointerManager, path: Path) -> None:
        self.manager = manager
        self._path = path
        self._lock: sqlite3.Connection | None = None

    async def off(self) -> None:
        # In a thread: who holds the lock now, such as a probe, needs this event loop to give it back.
        lock = self._lock = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        await asyncio.to_thread(lock.execute, "BEGIN EXCLUSIVE")  # in WAL mode readers go on: no write gets through

    async def on(self) -> None:
        if self._lock is not None:
            self._lock.rollback()
            self._lock.close()
            self._lock = None


class SwitchedMemory:
    """Memory behind a saver that refuses."""

    def __init__(self, manager: EnhancedCheckpointerManager) -> None:
        self.manager = manager

        self._flaky = make_flaky(manager)

    async def off(self) -> None:
        self._flaky.fail_with(ConnectionRefusedError("switched off"))

    async def on(self) -> None:
        self._flaky.heal()


@asynccontextmanager
async def switched(backend: str, database_url: str, path: Path, **fields: Any) -> AsyncIterator[Switched]:
    """An open manager over a fresh primary of this kind, which is on."""
    async with AsyncExitStack() as stack:
        if backend == "postgres":
            parts = urlsplit(database_url)
            proxy = await stack.enter_async_context(FaultProxy(str(parts.hostname), parts.port or 5432))
            manager = await stack.enter_async_context(opened(postgres(proxy.url(database_url), **fields)))
            yield SwitchedPostgres(manager, proxy)
        elif backend == "sqlite":
            manager = await stack.enter_async_context(opened(sqlite(path, **fields)))
            switch = SwitchedSqlite(manager, path)
            yield switch
            await switch.on()
        else:
            config = create_memory_checkpointer(**{**FAST, **fields})
            yield SwitchedMemory(await stack.enter_async_context(opened(config)))
