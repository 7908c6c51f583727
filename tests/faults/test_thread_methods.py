"""What a manager does with threads: for `await` and without a loop, and that it raises in an outage."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.base.id import uuid6

from enhanced_checkpointing import (
    CheckpointerConfig,
    CheckpointerError,
    CheckpointNotFoundError,
    CheckpointUnavailableError,
    EnhancedCheckpointerManager,
    create_memory_checkpointer,
    create_postgres_checkpointer,
    create_sqlite_checkpointer,
)
from tests.support.backends import BACKENDS
from tests.support.checkpointer import eventually, recovered, saver_of, switched
from tests.support.checkpoints import Thread
from tests.support.graphs import GRAPHS, counting_chain
from tests.support.leaks import LeakWatch

EVERY_BACKEND = pytest.mark.parametrize("backend", BACKENDS)


def config_of(backend: str, database_url: str, folder: Path, **fields: Any) -> CheckpointerConfig:
    if backend == "postgres":
        return create_postgres_checkpointer(database_url, **fields)
    return (
        create_sqlite_checkpointer(folder / "file.sqlite", **fields)
        if backend == "sqlite"
        else (create_memory_checkpointer(**fields))
    )


@EVERY_BACKEND
async def test_conversations_of_users_are_listed_as_their_graphs_left_them(
    backend: str, database_url: str, tmp_path: Path
) -> None:
    async with EnhancedCheckpointerManager(config_of(backend, database_url, tmp_path)) as manager:
        graph = counting_chain().compile(checkpointer=saver_of(manager))
        began_at = time.time()
        for number in range(3):
            for user in ("ada", "bob"):
                config = manager.create_thread_config(f"{user}-{number}", user_id=user, team=f"team {number % 2}")
                await graph.ainvoke({"question": "why"}, config)
        listed = await manager.list_threads(user_id="ada")
        assert [thread["thread_id"] for thread in listed] == ["ada-2", "ada-1", "ada-0"]
        newest = listed[0]
        state = await graph.aget_state({"configurable": {"thread_id": "ada-2"}})
        assert newest == await manager.get_thread("ada-2")
        assert newest["checkpoint_id"] == state.config["configurable"]["checkpoint_id"]
        assert newest["step"] == state.metadata["step"] == 3  # type: ignore[index]
        assert newest["checkpoints"] == 5
        assert newest["user_id"] == newest["metadata"]["user_id"] == "ada"
        assert began_at - 1 < datetime.fromisoformat(newest["updated_at"]).timestamp() < time.time() + 1
        assert newest["size"] > 100
        assert json.loads(json.dumps(listed)) == listed

        assert [one["thread_id"] for one in await manager.list_threads(user_id="ada", team="team 0")] == [
            "ada-2",
            "ada-0",
        ]
        first = await manager.list_threads(limit=4)
        for before in (first[-1], first[-1]["checkpoint_id"]):
            rest = await manager.list_threads(limit=4, before=before)
            assert [one["thread_id"] for one in first + rest] == [f"{u}-{n}" for n in (2, 1, 0) for u in ("bob", "ada")]
        assert await manager.list_threads(limit=0) == []
        with pytest.raises(ValueError, match="-1"):
            await manager.list_threads(limit=-1)
        assert await manager.list_threads(user_id="eve") == []
        assert await manager.get_thread("eve-0") is None


@EVERY_BACKEND
async def test_user_id_of_which_a_character_would_not_be_stored_is_nobody_s(
    backend: str, database_url: str, tmp_path: Path
) -> None:
    async with EnhancedCheckpointerManager(config_of(backend, database_url, tmp_path)) as manager:
        graph = counting_chain().compile(checkpointer=saver_of(manager))
        await graph.ainvoke({"question": "why"}, manager.create_thread_config("thread", user_id="ada"))
        assert [one["thread_id"] for one in await manager.list_threads(user_id="ada")] == ["thread"]
        await graph.ainvoke({"question": "why"}, manager.create_thread_config("other", user_id=""))
        for odd in ("a\0da", "ada\0", "\0"):
            with pytest.raises(ValueError, match="user_id contains a NUL character"):
                await manager.list_threads(user_id=odd)
            with pytest.raises(ValueError, match="user_id contains a NUL character"):
                manager.create_thread_config("third", user_id=odd)


@EVERY_BACKEND
def test_code_without_a_loop_does_the_same_by_methods_with_a_suffix(
    backend: str, database_url: str, tmp_path: Path
) -> None:
    with EnhancedCheckpointerManager(config_of(backend, database_url, tmp_path)) as manager:
        graph = counting_chain().compile(checkpointer=saver_of(manager))
        for number in range(2):
            config = manager.create_thread_config(f"thread-{number}", user_id="ada")
            graph.invoke({"question": "why"}, {**config, "metadata": {"run_id": f"run-{number}"}})
        first, second = manager.list_threads_sync(user_id="ada", limit=1) + manager.list_threads_sync(
            before=manager.list_threads_sync(limit=1)[-1]
        )
        assert (first["thread_id"], second["thread_id"]) == ("thread-1", "thread-0")
        assert manager.get_thread_sync("thread-0") == second
        copy = manager.copy_thread_sync("thread-0")
        manager.prune_sync([copy])
        found = manager.get_thread_sync(copy)
        assert found is not None
        assert (found["checkpoints"], found["checkpoint_id"]) == (1, second["checkpoint_id"])
        manager.delete_for_runs_sync(["run-1"])
        assert manager.get_thread_sync("thread-1") is None
        assert manager.delete_thread_sync("thread-0") is True
        assert manager.delete_thread_sync("thread-0") is False
        assert [one["thread_id"] for one in manager.list_threads_sync()] == [copy]


async def test_method_without_a_loop_refuses_to_block_the_loop_of_its_manager() -> None:
    async with EnhancedCheckpointerManager(create_memory_checkpointer()) as manager:
        with pytest.raises(CheckpointerError, match="would wait for itself"):
            manager.list_threads_sync()
        assert await asyncio.to_thread(manager.list_threads_sync) == []


async def test_closed_manager_says_that_it_is_closed() -> None:
    manager = EnhancedCheckpointerManager(create_memory_checkpointer())
    with pytest.raises(CheckpointerError, match="not open"):
        await manager.list_threads()


@EVERY_BACKEND
async def test_copy_of_no_thread_is_an_error_that_says_so(backend: str, database_url: str, tmp_path: Path) -> None:
    async with EnhancedCheckpointerManager(config_of(backend, database_url, tmp_path)) as manager:
        with pytest.raises(CheckpointNotFoundError, match="no thread 'missing'"):
            await manager.copy_thread("missing", "copy")
        assert await manager.list_threads() == []


@EVERY_BACKEND
async def test_in_an_outage_all_raise_but_a_deletion_is_kept_and_nothing_is_none(
    backend: str, database_url: str, tmp_path: Path, no_leaks: LeakWatch
) -> None:
    async with switched(backend, database_url, tmp_path / "primary.sqlite") as primary:
        manager = primary.manager
        thread, doomed = (Thread(saver_of(manager), name) for name in ("thread", "doomed"))
        await thread.put(user_id="ada")
        await doomed.put(user_id="ada")
        before = await manager.list_threads()
        await primary.off()
        await eventually_open(manager, thread)
        for call in (
            lambda: manager.list_threads(user_id="ada"),
            lambda: manager.list_threads(),
            lambda: manager.get_thread("thread"),
            lambda: manager.get_thread("never there"),
            lambda: manager.copy_thread("thread"),
            lambda: manager.copy_thread("never there"),
            lambda: manager.prune(["thread"]),
            lambda: manager.delete_for_runs(["run"]),
        ):
            with pytest.raises(CheckpointUnavailableError):
                await call()
        assert await manager.delete_thread("doomed") is True
        await primary.on()
        await recovered(manager)
        (left,) = await manager.list_threads(user_id="ada")
        assert left["thread_id"] == "thread"
        assert left["checkpoints"] == len(thread.ids) > 1
        assert left["checkpoint_id"] == thread.ids[-1] != before[-1]["checkpoint_id"]


async def eventually_open(manager: EnhancedCheckpointerManager, thread: Thread) -> None:
    """Write until the breaker has opened: what is written then is in the journal."""
    async with asyncio.timeout(20):
        while not manager.components.breaker.is_open:
            await thread.put(user_id="ada")
    await thread.put(user_id="ada")


@pytest.mark.parametrize("backend", ["sqlite", "postgres"])
async def test_copy_with_a_young_id_is_not_taken_for_a_new_thread_in_an_outage(
    backend: str, database_url: str, tmp_path: Path
) -> None:
    async with switched(backend, database_url, tmp_path / "primary.sqlite", on_unknown_thread="raise") as primary:
        manager = primary.manager
        thread = Thread(saver_of(manager), "thread")
        await thread.put()
        young = str(uuid6())
        await manager.copy_thread("thread", young)
        await primary.off()
        breaker = manager.components.breaker
        breaker.trip("switched off")
        await eventually(lambda: breaker.is_open)
        with pytest.raises(CheckpointUnavailableError):
            await saver_of(manager).aget_tuple({"configurable": {"thread_id": young}})
        await primary.on()


async def test_rare_graphs_of_every_kind_can_be_listed(tmp_path: Path) -> None:
    async with EnhancedCheckpointerManager(create_sqlite_checkpointer(tmp_path / "file.sqlite")) as manager:
        for case in GRAPHS.values():
            graph = case.builder().compile(checkpointer=saver_of(manager))
            for durability in ("sync", "exit"):
                config = manager.create_thread_config(f"{case.name} {durability}", user_id=durability)
                await graph.ainvoke(case.turns[0], config, durability=durability)
        for durability in ("sync", "exit"):
            listed = [one["thread_id"] for one in await manager.list_threads(user_id=durability)]
            assert listed == [f"{name} {durability}" for name in reversed(GRAPHS)]
