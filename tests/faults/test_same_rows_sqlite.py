"""Our rows are those of the official SQLite saver, byte for byte: either can read, and go on with, the other's."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.base import BaseCheckpointSaver, empty_checkpoint
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from enhanced_checkpointing.backends.sqlite.backend import SqliteBackend
from enhanced_checkpointing.operations import DeleteThread, Operation, Put, apply_to_saver
from enhanced_checkpointing.resilience.failures import FailureKind
from enhanced_checkpointing.serialization import SharingSerializer
from tests.support.author import Author, config_of
from tests.support.checkpointer import opened, saver_of, sqlite
from tests.support.graphs import GRAPHS, Durability, GraphCase, run_case

CASES = pytest.mark.parametrize("case", GRAPHS.values(), ids=GRAPHS)
TABLES = ("checkpoints", "writes")


class Doubling(AsyncSqliteSaver):
    """The official saver, which makes every write to another saver, too."""

    other: BaseCheckpointSaver[str]

    async def aput(self, *arguments: Any) -> Any:
        await self.other.aput(*arguments)
        return await super().aput(*arguments)

    async def aput_writes(self, *arguments: Any) -> None:
        await self.other.aput_writes(*arguments)
        await super().aput_writes(*arguments)


def rows_of(path: Path) -> dict[str, set[tuple[Any, ...]]]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return {table: set(connection.execute(f"SELECT * FROM {table}")) for table in TABLES}


@asynccontextmanager
async def backend_of(path: Path | str, serializer: SharingSerializer | None = None) -> AsyncIterator[SqliteBackend]:
    backend = SqliteBackend(sqlite(path), serializer or SharingSerializer())
    await backend.open()
    await backend.setup()
    try:
        yield backend
    finally:
        await backend.close()


def batch_of_everything() -> list[Operation]:
    """Operations of four threads, mixed, those of each in its order."""
    kept, rewritten, deleted, another = (Author(name, "ns") for name in ("kept", "rewritten", "deleted", "another"))
    deleted_put, put = deleted.put({"n": 1}), kept.put({"log": ["a"], "text": "b", "raw": b"c", "nothing": None})
    child = kept.put({"log": ["a", "b"], "delta": _DeltaSnapshot({1, 2}), "message": HumanMessage("d", id="1")})
    first = rewritten.put({"n": 1, "log": ["a"]})
    return [
        deleted_put,
        put,
        deleted.writes(("n", 2)),
        first,
        kept.writes(("log", ["b"]), ("raw", b"c"), ("nothing", None), task_id="one", task_path="~1"),
        rewritten.writes(("__interrupt__", "first"), ("__interrupt__", "second")),
        replace(first, values={**first.values, "n": 2}, live_values=None),  # put twice with the same id
        DeleteThread("deleted"),
        child,
        rewritten.writes(("__interrupt__", "third"), ("__error__", "oops")),
        replace(deleted_put, parent_checkpoint_id="parent"),  # deleted and put again
        rewritten.writes(("log", ["first"]), ("__error__", "stays out")),
        rewritten.writes(("log", ["second"]), ("n", 2)),
        rewritten.writes(),
        another.put({"n": 1}).replayable(),
        DeleteThread("nobody"),
    ]


async def call_bare(saver: AsyncSqliteSaver, operation: Operation) -> None:
    """Make the call of which the operation was made, with the checkpoint's keys in LangGraph's order."""
    if not isinstance(operation, Put):
        await apply_to_saver(saver, operation, SharingSerializer())
        return
    parts = operation.checkpoint({name: SharingSerializer().thaw(value) for name, value in operation.values.items()})
    checkpoint: Any = {key: parts[key] for key in empty_checkpoint()}  # type: ignore[literal-required]
    await saver.aput(operation.config(), checkpoint, operation.metadata, operation.new_versions)


async def assert_readers_agree(one: BaseCheckpointSaver[Any], other: BaseCheckpointSaver[Any]) -> None:
    for thread_id in ("kept", "rewritten", "deleted", "another", "nobody"):
        config = config_of(thread_id, "ns")
        found = [item async for item in one.alist(config)]
        assert found == [item async for item in other.alist(config)]
        assert await one.aget_tuple(config) == await other.aget_tuple(config) == (found[0] if found else None)
        for item in found:
            assert await one.aget_tuple(item.config) == await other.aget_tuple(item.config) == item


async def test_one_batch_leaves_the_rows_of_the_bare_saver_called_one_by_one(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.sqlite", tmp_path / "theirs.sqlite"
    batch = batch_of_everything()
    async with backend_of(ours) as backend, AsyncSqliteSaver.from_conn_string(str(theirs)) as bare:
        await backend.apply_batch(batch)
        for operation in batch:
            await call_bare(bare, operation)
        assert rows_of(ours) == rows_of(theirs)
        assert {len(rows) for rows in rows_of(ours).values()} == {5, 7}
        await assert_readers_agree(await backend.connected(), bare)


async def test_either_saver_reads_what_the_other_wrote(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.sqlite", tmp_path / "theirs.sqlite"
    batch = batch_of_everything()
    async with (
        backend_of(ours) as backend,
        AsyncSqliteSaver.from_conn_string(str(ours)) as reading_ours,
        AsyncSqliteSaver.from_conn_string(str(theirs)) as bare,
        backend_of(theirs) as reading_theirs,
    ):
        for operation in batch:
            await backend.apply(operation)
            await call_bare(bare, operation)
        await assert_readers_agree(await backend.connected(), reading_ours)
        await assert_readers_agree(await reading_theirs.connected(), bare)


@CASES
@pytest.mark.parametrize("durability", ["sync", "exit"])
async def test_run_of_a_graph_leaves_the_rows_of_the_bare_saver(
    case: GraphCase, durability: Durability, tmp_path: Path
) -> None:
    ours, theirs = tmp_path / "ours.sqlite", tmp_path / "theirs.sqlite"
    async with opened(sqlite(ours)) as manager, Doubling.from_conn_string(str(theirs)) as saver:
        assert isinstance(saver, Doubling)
        saver.other = saver_of(manager)
        await run_case(case, saver, "thread", durability=durability)
        assert rows_of(ours)["checkpoints"]
        assert rows_of(ours) == rows_of(theirs)


async def traced(backend: SqliteBackend, work: Callable[[], Any]) -> list[str]:
    """The first word of each statement that SQLite executes meanwhile."""
    executed: list[str] = []
    connection = (await backend.connected()).conn
    await connection.set_trace_callback(lambda text: executed.append(text.split()[0]))
    await work()
    await connection.set_trace_callback(None)  # type: ignore[arg-type]  # which ends it
    return executed


@pytest.mark.parametrize("name", ["apply_batch", "apply_all"])
async def test_batch_is_one_transaction(name: str, tmp_path: Path) -> None:
    def work() -> Any:
        batch = batch_of_everything()
        return backend.apply_batch(batch) if name == "apply_batch" else backend.apply_all(batch, {"ns": {None}})

    async with backend_of(tmp_path / "primary.sqlite") as backend:
        executed = await traced(backend, work)
    assert (executed[0], executed[-1]) == ("BEGIN", "COMMIT")
    assert {"INSERT", "DELETE"} == set(executed[1:-1])


def value_without_bytes(author: Author) -> Operation:
    put = author.put({"n": 1})
    return replace(put, metadata={**put.metadata, "made": object()})  # type: ignore[typeddict-unknown-key]


def text_that_is_none(author: Author) -> Operation:
    author.put({"n": 1})
    return author.writes(("no text: \ud800", 1))


@pytest.mark.parametrize("bad", [value_without_bytes, text_that_is_none])
async def test_one_bad_operation_leaves_the_others_uncommitted_and_is_the_callers_own(
    bad: Callable[[Author], Operation], tmp_path: Path
) -> None:
    path = tmp_path / "primary.sqlite"
    batch = [*batch_of_everything(), bad(Author("bad")), Author("after").put({"n": 1})]
    async with backend_of(path) as backend:
        with pytest.raises((TypeError, UnicodeEncodeError)) as refused:
            await backend.apply_batch(batch)
        assert backend.classify(refused.value).kind is FailureKind.DATA
        assert rows_of(path) == {"checkpoints": set(), "writes": set()}
        with contextlib.closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")  # it holds no lock either
            other.rollback()
        await backend.apply_batch([batch[-1]])
    assert {row[0] for row in rows_of(path)["checkpoints"]} == {"after"}


async def test_locked_file_leaves_the_batch_uncommitted_and_is_transient(tmp_path: Path) -> None:
    path = tmp_path / "primary.sqlite"
    async with backend_of(path) as backend:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(sqlite3.OperationalError, match="locked") as refused:
                await backend.apply_batch(batch_of_everything())
            other.rollback()
        assert backend.classify(refused.value).kind is FailureKind.TRANSIENT
        assert rows_of(path) == {"checkpoints": set(), "writes": set()}


@pytest.mark.parametrize("turns", range(8))
async def test_batch_whose_caller_is_cancelled_is_there_as_a_whole_or_not_at_all(turns: int, tmp_path: Path) -> None:
    path, batch = tmp_path / "primary.sqlite", batch_of_everything()
    async with backend_of(path) as backend:
        task = asyncio.create_task(backend.apply_batch(batch))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        await backend.apply(Author("after").put({"n": 1}))
    counts = {table: len(rows) for table, rows in rows_of(path).items()}
    assert counts in ({"checkpoints": 1, "writes": 0}, {"checkpoints": 6, "writes": 7})


async def test_memory_database_takes_batches_too() -> None:
    async with backend_of(":memory:") as backend, AsyncSqliteSaver.from_conn_string(":memory:") as bare:
        batch: Sequence[Operation] = batch_of_everything()
        await backend.apply_batch(batch)
        for operation in batch:
            await call_bare(bare, operation)
        await assert_readers_agree(await backend.connected(), bare)
