"""A faulty run and its twin without faults: the same graph, the same inputs, and equal dumps at the end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from langgraph.checkpoint.base import BaseCheckpointSaver

from tests.support.checkpointer import opened, postgres, saver_of
from tests.support.comparison import assert_equal_dumps
from tests.support.dump import dump_postgres
from tests.support.graphs import GRAPHS, run_case

Between = Callable[[int], Awaitable[None]]


async def run_graphs(saver: BaseCheckpointSaver[str], names: list[str], between: Between | None = None) -> None:
    """Run each of these graph cases on a thread of its own name, calling `between(turn)` before each turn."""
    for name in names:
        await run_case(GRAPHS[name], saver, f"thread-{name}", between=between)


async def assert_equals_twin(database_url: str, twin_database_url: str, names: list[str]) -> None:
    """Run the graphs once more without faults on the twin database, and compare the two databases row by row."""
    async with opened(postgres(twin_database_url)) as twin:
        await run_graphs(saver_of(twin), names)
    assert_equal_dumps(dump_postgres(database_url), dump_postgres(twin_database_url))
