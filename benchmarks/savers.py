"""The two savers of a pair: the bare one of LangGraph, set up as its documentation says, and ours with its defaults."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from psycopg import AsyncConnection
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool

from benchmarks.workload import Saver
from enhanced_checkpointing import (
    CheckpointerConfig,
    EnhancedCheckpointerManager,
    create_memory_checkpointer,
    create_postgres_checkpointer,
    create_sqlite_checkpointer,
)

BARE_POOL = 20
RECOVERY_SECONDS = 60.0


@dataclass(frozen=True)
class Pair:
    """Both savers, each on a database of its own."""

    bare: Saver
    ours: Saver
    manager: EnhancedCheckpointerManager

    @property
    def healthy(self) -> bool:
        """Whether everything of ours is in the primary: a figure that the journal took part in compares nothing."""
        return bool(self.manager.health_status["overall_status"] == "healthy")

    async def recover(self) -> None:
        """Wait until it is healthy again."""
        async with asyncio.timeout(RECOVERY_SECONDS):
            while not self.healthy:  # noqa: ASYNC110  # the public API has a report and no event
                await asyncio.sleep(0.1)


@asynccontextmanager
async def postgres_pair(bare_url: str, our_url: str, folder: Path) -> AsyncIterator[Pair]:
    async with bare_postgres(bare_url) as bare, our_postgres(our_url, folder) as manager:
        yield Pair(bare, saver_of(manager), manager)


@asynccontextmanager
async def bare_postgres(url: str) -> AsyncIterator[Saver]:
    kwargs = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    pool: AsyncConnectionPool[AsyncConnection[DictRow]] = AsyncConnectionPool(
        url, kwargs=kwargs, max_size=BARE_POOL, open=False
    )
    async with pool:
        saver = AsyncPostgresSaver(pool)
        await saver.setup()
        yield saver


@asynccontextmanager
async def our_postgres(url: str, folder: Path) -> AsyncIterator[EnhancedCheckpointerManager]:
    async with _opened(create_postgres_checkpointer(url, journal_dir=folder / "journal")) as manager:
        yield manager


@asynccontextmanager
async def sqlite_pair(folder: Path) -> AsyncIterator[Pair]:
    config = create_sqlite_checkpointer(folder / "ours.sqlite", journal_dir=folder / "journal")
    async with AsyncSqliteSaver.from_conn_string(str(folder / "bare.sqlite")) as bare, _opened(config) as manager:
        yield Pair(bare, saver_of(manager), manager)


@asynccontextmanager
async def memory_pair() -> AsyncIterator[Pair]:
    async with _opened(create_memory_checkpointer()) as manager:
        yield Pair(InMemorySaver(), saver_of(manager), manager)


@asynccontextmanager
async def _opened(config: CheckpointerConfig) -> AsyncIterator[EnhancedCheckpointerManager]:
    async with EnhancedCheckpointerManager(config) as manager:
        yield manager


def saver_of(manager: EnhancedCheckpointerManager) -> Saver:
    saver = manager.get_checkpointer()
    assert saver is not None
    return saver
