"""The primary by itself, without a manager: nothing is adopted, drained or set up by looking at it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from enhanced_checkpointing.backends.contract import Backend
from enhanced_checkpointing.backends.registry import find_backend
from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.observability.events import Broadcast, Telemetry
from enhanced_checkpointing.resilience.breaker import Breaker, BreakerSettings
from enhanced_checkpointing.resilience.deadline import Deadline
from enhanced_checkpointing.resilience.guard import Guard
from enhanced_checkpointing.serialization import SharingSerializer

__all__ = ["Primary", "bounded", "opened_primary"]

T = TypeVar("T")

SETTLE_SECONDS = 1.0
"""How long what was left behind is given to end, before the command ends without it."""


class Primary:
    """An open backend behind a guard, so that no question to it takes longer than it may."""

    def __init__(self, backend: Backend, telemetry: Telemetry) -> None:
        self.backend = backend
        self._guard = Guard(
            backend.name,
            breaker=Breaker(time.monotonic, BreakerSettings(), lambda opened, reason: None),
            classify=backend.classify,
            saturated=backend.saturated,
            telemetry=telemetry,
        )

    async def ask(self, operation: str, run: Callable[[], Awaitable[T]], seconds: float) -> T:
        """The answer to `run()` within `seconds`.

        Raises:
            CallFailed: there was none; it carries the error as the backend classifies it.
        """
        return await self._guard.once(operation, run, deadline=Deadline(time.monotonic, seconds))

    async def close(self) -> None:
        """Let go of everything, within bounds."""
        await self._guard.settle(SETTLE_SECONDS)
        await self.backend.close()


@asynccontextmanager
async def opened_primary(config: CheckpointerConfig) -> AsyncIterator[Primary]:
    """The primary of a configuration. The database need not be up, and nothing is made in it.

    Raises:
        CheckpointerConfigurationError: it cannot be opened for a reason that waiting does not mend.
    """
    config = config.with_overrides(pool_min_size=0)  # no connection but those that are asked for
    primary = Primary(find_backend(config.backend_name)(config, SharingSerializer(config.serde)), Broadcast([]))
    try:
        await primary.backend.open()
        yield primary
    finally:
        await primary.close()


async def bounded(work: Awaitable[T], seconds: float) -> T:
    """The result of `work` within `seconds`; what takes longer is left behind, as its end may wait for whatever hangs.

    Raises:
        TimeoutError: it takes longer.
    """
    task = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
    except asyncio.CancelledError:
        task.cancel()
        raise
    if not done:
        task.cancel()
        raise TimeoutError(f"no answer within {seconds:g} s")
    return task.result()
