"""The demo's SQLite file, locked by a second connection again and again."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from enhanced_checkpointing import CheckpointerConfig, create_sqlite_checkpointer
from enhanced_checkpointing.cli.demo.faults import DEADLINE, DemoDatabase, Fault, Saver, in_thread

__all__ = ["open_sqlite"]


@asynccontextmanager
async def open_sqlite(title: str) -> AsyncIterator[DemoDatabase]:
    """A file in a temporary folder that is removed at the end; `title` says what it is and why."""
    folder = Path(tempfile.mkdtemp(prefix="checkpointing-demo-"))
    database = _LockedSqlite(title, folder)
    try:
        yield database
    finally:
        database.unlock()
        shutil.rmtree(folder)


class _LockedSqlite:
    """A file that a second connection locks against every write. The bare saver gets a file of its own, locked too."""

    # Longer than the 5 s that the bare saver's driver waits for a lock.
    faults: tuple[Fault, ...] = (Fault("lock", "database locked", "database unlocked", 6.5),)

    def __init__(self, title: str, folder: Path) -> None:
        self.title = title
        self._folder = folder
        self._path = folder / "checkpoints.sqlite"
        self._bare_path = folder / "bare.sqlite"
        self._locks: list[sqlite3.Connection] = []

    def configure(self) -> CheckpointerConfig:
        return create_sqlite_checkpointer(
            self._path, deadline=DEADLINE, journal_dir=self._folder / "journal", shutdown_grace=1.0
        )

    @asynccontextmanager
    async def bare_saver(self) -> AsyncIterator[Saver]:
        async with AsyncSqliteSaver.from_conn_string(str(self._bare_path)) as saver:
            await saver.setup()
            yield saver

    @asynccontextmanager
    async def reader(self) -> AsyncIterator[Saver]:
        async with AsyncSqliteSaver.from_conn_string(str(self._path)) as saver:
            yield saver

    async def apply(self, fault: Fault) -> None:
        await in_thread(self._lock)

    async def mend(self, fault: Fault) -> None:
        self.unlock()

    def _lock(self) -> None:
        for path in (self._path, self._bare_path):
            connection = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
            self._locks.append(connection)
            connection.execute("BEGIN EXCLUSIVE")

    def unlock(self) -> None:
        while self._locks:
            self._locks.pop().close()
