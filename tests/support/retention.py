"""Managers whose threads look as old as a test wants: the time of day is what is moved."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from langgraph.checkpoint.memory import InMemorySaver

from enhanced_checkpointing import EnhancedCheckpointerManager
from enhanced_checkpointing.threads.sweeper import Sweeper
from tests.support.backends import config_of
from tests.support.checkpointer import FAST, opened
from tests.support.comparison import Dump
from tests.support.dump import dump_memory, dump_postgres, dump_sqlite


class Stage:
    """One primary of a kind, on which managers are opened."""

    def __init__(self, name: str, database_url: str, folder: Path, stack: AsyncExitStack) -> None:
        self.name = name
        self._database_url = database_url
        self._folder = folder
        self._stack = stack

    async def manager(self, **fields: Any) -> EnhancedCheckpointerManager:
        """One more manager; memory has one only."""
        chosen = {**FAST, "deadline": 5.0, "journal_dir": self._folder / "journal", **fields}
        if self.name == "memory":
            del chosen["journal_dir"]
        config = config_of(self.name, self._database_url, self._folder, **chosen)
        return await self._stack.enter_async_context(opened(config))

    def dump(self, manager: EnhancedCheckpointerManager) -> Dump:
        """All that the primary holds."""
        if self.name == "postgres":
            return dump_postgres(self._database_url)
        if self.name == "sqlite":
            return dump_sqlite(self._folder / "checkpoints.sqlite")
        saver = manager.components.backend.saver
        assert isinstance(saver, InMemorySaver)
        return dump_memory(saver)


@asynccontextmanager
async def stage(name: str, database_url: str, folder: Path) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        yield Stage(name, database_url, folder, stack)


def sweeper_of(manager: EnhancedCheckpointerManager) -> Sweeper:
    return manager.components.sweeper


def let_pass(manager: EnhancedCheckpointerManager, days: float) -> None:
    """From now on it is so many days later than it is."""
    sweeper_of(manager).now = lambda: datetime.now(UTC) + timedelta(days=days)


def without_metadata(dump: Dump) -> Dump:
    rows = [{key: value for key, value in row.items() if key != "metadata"} for row in dump["checkpoints"]]
    return {**dump, "checkpoints": rows}
