"""Marks on threads: they change nothing but metadata, last until the thread goes on, and work in an outage too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import ormsgpack
import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver

from enhanced_checkpointing import (
    CheckpointNotFoundError,
    CheckpointUnavailableError,
    EnhancedCheckpointerManager,
    create_memory_checkpointer,
)
from enhanced_checkpointing.backends.memory.backend import MemoryBackend
from enhanced_checkpointing.operations import Operation, Put
from tests.support.backends import BACKENDS, checkpoint_id, config_of, opened_backend, put, write
from tests.support.checkpointer import recovered, saver_of, switched
from tests.support.checkpoints import Thread
from tests.support.dump import dump_memory, dump_postgres, dump_sqlite
from tests.support.graphs import GRAPHS
from tests.support.retention import stage, without_metadata

UNREADABLE = ormsgpack.packb(ormsgpack.Ext(2, ormsgpack.packb(("nowhere", "Nothing", {"a": 1}))))
"""An object of a class that this process does not have."""
KINDS = [name for name in ("interrupting", "stateful_subgraph", "delta_channel", "send_map") if name in GRAPHS]


async def run(manager: EnhancedCheckpointerManager, name: str, thread_id: str, turns: int) -> None:
    graph = GRAPHS[name].builder().compile(checkpointer=saver_of(manager))
    config: RunnableConfig = {"configurable": {"thread_id": thread_id}}
    for turn in GRAPHS[name].turns[:turns]:
        await graph.ainvoke(turn, config)


async def status(manager: EnhancedCheckpointerManager, thread_id: str) -> str:
    found = await manager.get_thread(thread_id)
    assert found is not None
    return str(found["status"])


def memory_of(manager: EnhancedCheckpointerManager) -> InMemorySaver:
    backend = manager.components.backend
    assert isinstance(backend, MemoryBackend)
    return backend._memory


def marked(dump: Any) -> list[tuple[str, str]]:
    """The marks that there are, each with its thread."""
    rows = dump["checkpoints"]
    return [(row["thread_id"], row["metadata"]["thread_status"]) for row in rows if "thread_status" in row["metadata"]]


@pytest.mark.parametrize("backend", BACKENDS)
async def test_mark_changes_nothing_but_metadata_whatever_the_graph(
    backend: str, database_url: str, tmp_path: Path
) -> None:
    async with stage(backend, database_url, tmp_path) as place:
        manager = await place.manager()
        for name in KINDS:
            await run(manager, name, name, 1)
        before = place.dump(manager)
        for name in KINDS:
            await manager.mark_completed(name)
        after = place.dump(manager)
        assert without_metadata(after) == without_metadata(before)
        assert sorted(marked(after)) == sorted((name, "completed") for name in KINDS)
        for was, row in zip(before["checkpoints"], after["checkpoints"], strict=True):
            assert was["metadata"].items() <= row["metadata"].items()


@pytest.mark.parametrize("backend", BACKENDS)
async def test_mark_is_listed_and_ends_when_the_thread_goes_on(backend: str, database_url: str, tmp_path: Path) -> None:
    async with stage(backend, database_url, tmp_path) as place:
        manager = await place.manager()
        for name in ("one", "two", "three"):
            await run(manager, "counting_chain", name, 1)
        await manager.mark_completed("one")
        await manager.mark_failed("two")

        async def listed(wanted: str) -> list[str]:
            return [found["thread_id"] for found in await manager.list_threads(thread_status=wanted)]

        assert [await listed(one) for one in ("completed", "failed", "active")] == [["one"], ["two"], ["three"]]
        await manager.mark_completed("two")
        assert await status(manager, "two") == "completed"
        graph = GRAPHS["counting_chain"].builder().compile(checkpointer=saver_of(manager))
        await graph.ainvoke({"question": "what"}, {"configurable": {"thread_id": "one"}})
        await graph.aupdate_state({"configurable": {"thread_id": "two"}}, {"question": "when"}, as_node="first")
        assert await status(manager, "one") == "active"
        assert await status(manager, "two") == "active"


@pytest.mark.parametrize("backend", BACKENDS)
async def test_thread_goes_on_from_a_mark_as_if_there_were_none(
    backend: str, database_url: str, tmp_path: Path
) -> None:
    async with stage(backend, database_url, tmp_path) as place:
        manager = await place.manager()
        graph = GRAPHS["interrupting"].builder().compile(checkpointer=saver_of(manager))
        for name, turns in (("marked", True), ("plain", False)):
            config: RunnableConfig = {"configurable": {"thread_id": name}}
            for turn in GRAPHS["interrupting"].turns:
                await graph.ainvoke(turn, config)
                if turns:
                    await manager.mark_failed(name)
        values = [
            (await graph.aget_state({"configurable": {"thread_id": name}})).values for name in ("marked", "plain")
        ]
        assert values[0] == values[1]


@pytest.mark.parametrize("backend", BACKENDS)
async def test_thread_that_is_not_there_cannot_be_marked(backend: str, database_url: str, tmp_path: Path) -> None:
    async with stage(backend, database_url, tmp_path) as place:
        manager = await place.manager()
        with pytest.raises(CheckpointNotFoundError, match="no thread 'nobody'"):
            await manager.mark_completed("nobody")
        assert await manager.list_threads() == []


def test_marks_work_without_a_loop() -> None:
    with EnhancedCheckpointerManager(create_memory_checkpointer()) as manager:
        graph = GRAPHS["counting_chain"].builder().compile(checkpointer=saver_of(manager))
        graph.invoke({"question": "why"}, {"configurable": {"thread_id": "thread"}})
        manager.mark_completed_sync("thread")
        assert [found["status"] for found in manager.list_threads_sync()] == ["completed"]
        manager.mark_failed_sync("thread")
        assert [found["status"] for found in manager.list_threads_sync()] == ["failed"]


@pytest.mark.parametrize("backend", BACKENDS)
async def test_mark_of_an_outage_is_drained_and_changes_nothing_but_metadata(
    backend: str, database_url: str, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoints.sqlite"
    async with switched(backend, database_url, path, journal_dir=tmp_path / "journal", deadline=1.0) as primary:
        manager = primary.manager

        def dump() -> Any:
            if backend == "memory":
                return dump_memory(memory_of(manager))
            return dump_postgres(database_url) if backend == "postgres" else dump_sqlite(path)

        for name in KINDS:
            await run(manager, name, name, 1)
        before = dump()
        await primary.off()
        for name in KINDS:
            await manager.mark_completed(name)
        found = await saver_of(manager).aget_tuple({"configurable": {"thread_id": KINDS[0], "checkpoint_ns": ""}})
        assert found is not None
        assert found.metadata["thread_status"] == "completed"  # type: ignore[typeddict-item]
        await primary.on()
        await recovered(manager)
        after = dump()
        assert sorted(marked(after)) == sorted((name, "completed") for name in KINDS)
        assert without_metadata(after) == without_metadata(before)
        assert manager.health_status["divergences"]["count"] == 0


async def test_cold_thread_cannot_be_marked_in_an_outage(database_url: str, tmp_path: Path) -> None:
    async with stage("postgres", database_url, tmp_path) as place:
        await Thread(saver_of(await place.manager()), "thread").put()
        async with switched("postgres", database_url, tmp_path / "x", on_unknown_thread="raise") as primary:
            await primary.off()
            with pytest.raises(CheckpointUnavailableError):
                await primary.manager.mark_completed("thread")
            await primary.on()
            await recovered(primary.manager)
            assert await status(primary.manager, "thread") == "active"


@pytest.mark.parametrize("backend", BACKENDS)
async def test_mark_is_made_by_a_process_that_cannot_read_the_values(
    backend: str, database_url: str, tmp_path: Path
) -> None:
    """In the primary alone, byte for byte: neither a journal nor a put is behind it."""
    async with opened_backend(config_of(backend, database_url, tmp_path)) as primary:
        await primary.apply(put("thread", 1, values={"odd": UNREADABLE}))
        await primary.apply(put("thread", 2, parent=1, values={"odd": UNREADABLE}))
        await primary.apply(put("thread", 3, namespace="below:task"))
        await primary.apply(write("thread", 2, "odd", UNREADABLE))

        async def stored() -> list[Operation]:
            return [one async for chunk in primary.read_thread("thread") for one in chunk]

        before = await stored()
        assert await primary.annotate("thread", {"thread_status": "failed", "note": "äöü 漢 '\""})
        after = [replace(one, metadata={}) if isinstance(one, Put) else one for one in await stored()]
        assert after == [replace(one, metadata={}) if isinstance(one, Put) else one for one in before]
        (head,) = await primary.describe(["thread"])
        assert head.checkpoint_id == checkpoint_id(2)
        assert head.metadata == {"source": "loop", "step": 2, "thread_status": "failed", "note": "äöü 漢 '\""}
        assert not await primary.annotate("nobody", {"thread_status": "failed"})
