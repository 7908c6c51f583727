"""What the demo asks of a database: to be configured, broken, mended and read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from langgraph.checkpoint.base import BaseCheckpointSaver

from enhanced_checkpointing import CheckpointerConfig

__all__ = ["DEADLINE", "DemoDatabase", "Fault", "Saver", "in_thread"]

T = TypeVar("T")
Saver = BaseCheckpointSaver[str]

DEADLINE = 1.0
"""Seconds that one call of the checkpointer may take in the demo: short, as the freezes are."""


@dataclass(frozen=True)
class Fault:
    """One way to break a database; `seconds` is how long it lasts at least."""

    name: Literal["kill", "freeze", "cut", "hang", "lock"]
    breaks: str
    mends: str
    seconds: float


class DemoDatabase(Protocol):
    """What the demo may know of its database."""

    title: str
    faults: tuple[Fault, ...]
    """What happens to it, in this order, and then from the start again."""

    def configure(self) -> CheckpointerConfig:
        """The configuration of the checkpointer that is shown."""
        ...

    def bare_saver(self) -> AbstractAsyncContextManager[Saver]:
        """LangGraph's own saver on the same way to the database, as its documentation sets it up."""
        ...

    def reader(self) -> AbstractAsyncContextManager[Saver]:
        """LangGraph's own saver on a new connection past all faults: what it finds is what is stored."""
        ...

    async def apply(self, fault: Fault) -> None: ...

    async def mend(self, fault: Fault) -> None: ...


async def in_thread(work: Callable[[], T]) -> T:
    """Run blocking `work` to its end, also when cancelled: a server half started could not be cleaned up."""
    task = asyncio.create_task(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # seen: whoever cancelled does not wait for it
        raise
