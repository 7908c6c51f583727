"""Two managers over one database, as two processes have them; the primary of one of them can be switched off."""

from __future__ import annotations

import operator
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, TypedDict

from langchain_core.runnables import RunnableConfig
from langgraph.graph import START, StateGraph

from enhanced_checkpointing import EnhancedCheckpointerManager
from tests.support.checkpointer import Switched, opened, postgres, sqlite, switched

CONFIG: RunnableConfig = {"configurable": {"thread_id": "shared"}}


class Log(TypedDict, total=False):
    log: Annotated[list[str], operator.add]


def one_node(name: str, node: Any) -> StateGraph[Any]:
    graph: StateGraph[Any] = StateGraph(Log)
    graph.add_node(name, node)
    graph.add_edge(START, name)
    return graph


@asynccontextmanager
async def two_processes(
    path: Path, database_url: str | None = None, **fields: Any
) -> AsyncIterator[tuple[Switched, EnhancedCheckpointerManager]]:
    """Ours, whose primary can be switched off, and another one. On SQLite the other's is off then, too."""
    fields = {"on_unknown_thread": "raise", **fields}
    file = path / "shared.sqlite"
    async with (
        switched("sqlite" if database_url is None else "postgres", database_url or "", file, **fields) as ours,
        opened(sqlite(file) if database_url is None else postgres(database_url)) as other,
    ):
        yield ours, other


async def off(primary: Switched) -> None:
    await primary.off()
    primary.manager.components.breaker.trip("by a test")


async def log_of(graph: Any, config: RunnableConfig = CONFIG) -> list[str]:
    found: list[str] = (await graph.aget_state(config)).values.get("log", [])
    return found


async def questions(graph: Any) -> list[Any]:
    return [asked.value for asked in (await graph.aget_state(CONFIG)).interrupts]
