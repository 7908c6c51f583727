"""A checkpointer brought into each of its states by a real PostgreSQL, with what it serves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from starlette.applications import Starlette

from enhanced_checkpointing import CheckpointUnavailableError, EnhancedCheckpointerManager
from enhanced_checkpointing.cli.demo.postgres_server import LocalPostgres
from enhanced_checkpointing.serving import checkpointing_app
from tests.support.checkpointer import eventually, postgres, saver_of
from tests.support.checkpoints import Thread
from tests.support.fault_proxy import FaultProxy

STATES = ("healthy", "outage", "draining", "refusing", "closed", "never opened", "switched off")

SLOW_NETWORK = 0.05
"""Seconds each way: a drain of many threads, one after another, then takes as long as a test needs to look at it."""

THREADS = 60


@dataclass(frozen=True)
class Standing:
    """One manager in one state."""

    manager: EnhancedCheckpointerManager
    app: Starlette
    proxy: FaultProxy

    def client(self) -> httpx.AsyncClient:
        """Asks the application without a network in between."""
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://test")


@asynccontextmanager
async def standing(
    state: str, server: LocalPostgres, *, unhurried: float = 0.0, **fields: Any
) -> AsyncIterator[Standing]:
    """A manager over a running server, in this state; the server is brought down and up for it.

    It takes writes for `unhurried` seconds while it is healthy, and as long in the outage.
    """
    fields = {"deadline": 3.0, "drain_concurrency": 1, **fields}
    if state == "refusing":
        fields["on_outage"] = "raise"
    if state == "switched off":
        fields["enabled"] = False
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(FaultProxy("127.0.0.1", server.port))
        manager = EnhancedCheckpointerManager(postgres(proxy.url(server.url()), **fields))
        app = checkpointing_app(manager, name="shop-agent")
        if state != "never opened":
            await manager.initialize()
            stack.push_async_callback(manager.cleanup)
        stands = Standing(manager, app, proxy)
        if state not in ("never opened", "switched off"):
            await _bring_into(state, stands, server, unhurried)
        yield stands
        proxy.forward()


async def _bring_into(state: str, stands: Standing, server: LocalPostgres, unhurried: float) -> None:
    manager = stands.manager
    saver = saver_of(manager)
    threads = [Thread(saver, f"thread-{number}") for number in range(THREADS)]
    await write(threads)
    await asyncio.gather(*(saver.aget_tuple(thread.config) for thread in threads))
    await _go_on(threads, unhurried)
    if state in ("outage", "draining", "refusing"):
        await asyncio.to_thread(server.kill)
        while manager.health_status["primary_checkpointer"]["breaker"] == "closed":
            await write(threads)
        await write(threads)
        await _go_on(threads, unhurried)
    if state == "draining":
        await asyncio.to_thread(server.start)
        stands.proxy.delay(SLOW_NETWORK)
        await eventually(lambda: manager.health_status["primary_healthy"])
    if state == "closed":
        await manager.cleanup()


async def _go_on(threads: list[Thread], seconds: float) -> None:
    for number in range(round(seconds)):
        await write(threads[number % 3 :: 3])
        await asyncio.sleep(1.0)


async def write(threads: list[Thread]) -> None:
    """One checkpoint of each; what is refused in an outage is."""
    done = await asyncio.gather(*(thread.put() for thread in threads), return_exceptions=True)
    for error in done:
        if isinstance(error, BaseException) and not isinstance(error, CheckpointUnavailableError):
            raise error
