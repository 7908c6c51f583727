"""Old threads go, on every primary; those that anybody waits for, writes to, or has in a journal stay."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from enhanced_checkpointing import EnhancedCheckpointerManager
from enhanced_checkpointing.backends.postgres.backend import PostgresBackend
from enhanced_checkpointing.threads.retention import RetentionPolicy, Sweep
from tests.support.backends import BACKENDS
from tests.support.checkpointer import eventually, recovered, saver_of, switched
from tests.support.checkpoints import Thread
from tests.support.graphs import GRAPHS
from tests.support.journals import add, opened_journal
from tests.support.retention import let_pass, stage, sweeper_of

ON_DISK = ("sqlite", "postgres")
WRITERS, WRITES = 4, 30
DELETIONS = 5


async def run(manager: EnhancedCheckpointerManager, name: str, thread_id: str, turns: int = 1, **nodes: Any) -> None:
    graph = GRAPHS[name].builder().compile(checkpointer=saver_of(manager), **nodes)
    for turn in GRAPHS[name].turns[:turns]:
        await graph.ainvoke(turn, {"configurable": {"thread_id": thread_id}})


async def state(manager: EnhancedCheckpointerManager, name: str, thread_id: str) -> dict[str, Any]:
    config: RunnableConfig = {"configurable": {"thread_id": thread_id}}
    graph = GRAPHS[name].builder().compile(checkpointer=saver_of(manager))
    return dict((await graph.aget_state(config)).values)


def keep_from_draining(manager: EnhancedCheckpointerManager) -> None:
    """What waits in its journal goes on waiting."""
    parts = manager.components
    assert parts.reconciler is not None

    async def never(*_: Any) -> bool:
        return False

    parts.reconciler.drain_all = never  # type: ignore[method-assign]
    parts.engine.drain_first = never


async def left(manager: EnhancedCheckpointerManager) -> set[str]:
    return {found["thread_id"] for found in await manager.list_threads()}


@pytest.mark.parametrize("backend", BACKENDS)
async def test_threads_go_by_age_and_status_with_all_they_have(backend: str, database_url: str, tmp_path: Path) -> None:
    async with stage(backend, database_url, tmp_path) as place:
        manager = await place.manager()
        names = ["active", "completed", "failed"]
        for name in names:
            await run(manager, "subgraph", name)
        await manager.mark_completed("completed")
        await manager.mark_failed("failed")
        for days, stay in ((2, {*names}), (4, {"active", "completed"}), (8, {"completed"}), (29, {"completed"})):
            let_pass(manager, days)
            found = await manager.run_retention()
            assert found.complete
            assert await left(manager) == stay
        assert {row["thread_id"] for rows in place.dump(manager).values() for row in rows} == {"completed"}
        let_pass(manager, 31)
        found = await manager.run_retention()
        assert (found.looked_at, found.deleted, found.pruned, found.failed) == (1, 1, 0, 0)
        assert found.checkpoints > 5
        assert found.size > 500
        assert all(not rows for rows in place.dump(manager).values())


@pytest.mark.parametrize("backend", BACKENDS)
async def test_rehearsal_says_what_would_go_and_changes_nothing(
    backend: str, database_url: str, tmp_path: Path
) -> None:
    async with stage(backend, database_url, tmp_path) as place:
        manager = await place.manager()
        for name in ("old", "long"):
            await run(manager, "counting_chain", name)
        await run(manager, "interrupting", "asking")
        await manager.mark_failed("old")
        before = place.dump(manager)
        let_pass(manager, 4)
        found = await manager.run_retention(RetentionPolicy(keep=2), dry_run=True)
        assert place.dump(manager) == before
        assert {(one.thread_id, one.outcome) for one in found.retired} == {("old", "deleted"), ("long", "pruned")}
        assert found.kept == {"it waits at an interrupt": 1}
        assert (found.deleted, found.pruned, found.dry_run) == (1, 1, True)
        done = await manager.run_retention(RetentionPolicy(keep=2))
        assert {(one.thread_id, one.outcome, one.reason) for one in done.retired} == {
            (one.thread_id, one.outcome, one.reason) for one in found.retired
        }


@pytest.mark.parametrize("backend", BACKENDS)
async def test_what_somebody_waits_for_stays_however_old_and_can_go_on(
    backend: str, database_url: str, tmp_path: Path
) -> None:
    async with stage(backend, database_url, tmp_path) as place:
        manager = await place.manager()
        await run(manager, "interrupting", "question")
        await run(manager, "counting_chain", "before", interrupt_before=["second"])
        await run(manager, "send_map", "sends", interrupt_before=["work"])
        await run(manager, "subgraph", "after", interrupt_after=["supervisor"])
        await run(manager, "delta_channel", "done")
        before = place.dump(manager)
        let_pass(manager, 10_000)
        found = await manager.run_retention(RetentionPolicy(0, 0, 0, keep=1))
        assert await left(manager) == {"question", "before", "sends", "after"}
        assert sum(found.kept.values()) == 4
        for table, rows in place.dump(manager).items():
            assert rows == [row for row in before[table] if row["thread_id"] != "done"]
        for name, thread_id in (("counting_chain", "before"), ("send_map", "sends"), ("subgraph", "after")):
            graph = GRAPHS[name].builder().compile(checkpointer=saver_of(manager))
            await graph.ainvoke(None, {"configurable": {"thread_id": thread_id}})
            assert (await state(manager, name, thread_id))["log"]
        await manager.run_retention()
        assert await left(manager) == {"question"}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["stateful_subgraph", "delta_channel"])
async def test_pruned_thread_goes_on_as_one_that_was_not(
    name: str, backend: str, database_url: str, tmp_path: Path
) -> None:
    async with stage(backend, database_url, tmp_path) as place:
        manager = await place.manager()
        let_pass(manager, 1)
        dropped = 0
        for thread_id in ("pruned", "whole"):
            graph = GRAPHS[name].builder().compile(checkpointer=saver_of(manager))
            for turn in GRAPHS[name].turns:
                await graph.ainvoke(turn, {"configurable": {"thread_id": thread_id}})
                if thread_id == "pruned":
                    dropped += (await manager.run_retention(RetentionPolicy(keep=1))).checkpoints
        assert dropped > 0
        assert await state(manager, name, "pruned") == await state(manager, name, "whole")
        sizes = {one["thread_id"]: one["size"] for one in await manager.list_threads()}
        assert sizes["pruned"] < sizes["whole"]


@pytest.mark.parametrize("backend", ON_DISK)
async def test_write_that_races_with_the_deletion_of_its_thread_is_never_lost(
    backend: str, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One manager deletes all it may, again and again; what another one writes meanwhile is there, with the values that
    were not written along with it. A checkpoint is gone only where a sweep saw it as the newest one."""
    monkeypatch.setattr("enhanced_checkpointing.identifiers.OLD_SECONDS", -3600)  # as for the one who sweeps
    monkeypatch.setattr("enhanced_checkpointing.threads.sweeper.REST", 0.0)
    deleted, survived, chance = 0, 0, random.Random(1)

    async def write(saver: BaseCheckpointSaver[str], number: int) -> None:
        nonlocal survived
        thread = Thread(saver, f"thread-{number}")
        while deleted < DELETIONS or len(thread.ids) < WRITES:
            await thread.put()
            found = await saver.aget_tuple(thread.config)
            if found is not None:
                assert found.checkpoint["id"] == thread.ids[-1]
                assert found.checkpoint["channel_values"] == {"count": [len(thread.ids) - 1], "profile": ["Ada"]}
                survived += 1
            await asyncio.sleep(chance.uniform(0, 0.05))  # or the newest one is never what a sweep saw

    async with stage(backend, database_url, tmp_path) as place:
        writing, sweeping = await place.manager(), await place.manager()
        let_pass(sweeping, 10_000)

        async def keep_sweeping() -> None:
            nonlocal deleted
            while not done.is_set():
                found = await sweeping.run_retention()
                assert (found.stopped, found.failed) == (None, 0), found
                deleted += found.deleted

        done = asyncio.Event()
        task = asyncio.create_task(keep_sweeping())
        try:
            async with asyncio.timeout(90):
                await asyncio.gather(*(write(saver_of(writing), number) for number in range(WRITERS)))
        finally:
            done.set()
            await task
        assert deleted >= DELETIONS
        assert survived > 0


@pytest.mark.parametrize("backend", ON_DISK)
async def test_thread_that_was_written_after_it_was_looked_at_is_not_deleted(
    backend: str, database_url: str, tmp_path: Path
) -> None:
    async with stage(backend, database_url, tmp_path) as place:
        manager, other = await place.manager(), await place.manager()
        thread = Thread(saver_of(other), "thread")
        await thread.put()
        parts = manager.components
        delete_if = parts.backend.delete_if
        let_pass(manager, 100)

        async def written_meanwhile(thread_ids: Any, judge: Any) -> Any:
            await thread.put()
            return await delete_if(thread_ids, judge)

        parts.backend.delete_if = written_meanwhile  # type: ignore[method-assign]
        found = await manager.run_retention()
        assert found.deleted == 0
        assert found.kept == {"it has been written to since it was looked at": 1}
        assert await thread.stored_ids() == thread.ids


async def test_postgres_deletes_nothing_that_was_written_or_changed_after_it_was_judged(
    database_url: str, tmp_path: Path
) -> None:
    """Within the transaction: between the look at the thread and its deletion."""
    async with stage("postgres", database_url, tmp_path) as place:
        manager, other = await place.manager(), await place.manager()
        parts = manager.components
        assert isinstance(parts.backend, PostgresBackend)
        thread = Thread(saver_of(other), "written")
        await thread.put()
        await Thread(saver_of(other), "marked").put()
        loop = asyncio.get_running_loop()

        def judge_after(change: Callable[[], Awaitable[Any]]) -> Callable[..., bool]:
            def judge(thread_id: str, found: Any) -> bool:
                asyncio.run_coroutine_threadsafe(change(), loop).result(10)  # type: ignore[arg-type]
                return True

            return judge

        async def in_thread(thread_id: str, judge: Any) -> Any:
            """With a connection of its own, on a loop of its own, so that this loop can write meanwhile."""

            def work() -> Any:
                async def go() -> Any:
                    backend = PostgresBackend(manager.config, parts.backend.serializer)
                    await backend.open()
                    try:
                        return await backend.delete_if([thread_id], judge)
                    finally:
                        await backend.close()

                return asyncio.run(go())

            return await asyncio.to_thread(work)

        assert await in_thread("written", judge_after(thread.put)) == ["written"]
        assert await thread.stored_ids() == thread.ids[1:]
        assert await in_thread("marked", judge_after(lambda: other.mark_completed("marked"))) == []
        assert (await other.get_thread("marked") or {})["status"] == "completed"


@pytest.mark.parametrize("backend", BACKENDS)
async def test_thread_of_which_the_journal_holds_anything_is_left_alone(
    backend: str, database_url: str, tmp_path: Path
) -> None:
    async with switched(
        backend, database_url, tmp_path / "checkpoints.sqlite", journal_dir=tmp_path / "journal", drain_concurrency=1
    ) as primary:
        manager = primary.manager
        held, free = Thread(saver_of(manager), "held"), Thread(saver_of(manager), "free")
        for thread in (held, free):
            await thread.put()
        await primary.off()
        await held.put()
        keep_from_draining(manager)
        await primary.on()
        await eventually(lambda: manager.health_status["primary_healthy"])
        let_pass(manager, 100)
        found = await manager.run_retention()
        assert found.kept == {"the journal holds something of it": 1}, found
        assert found.deleted == 1
        config: RunnableConfig = {"configurable": {"thread_id": "held", "checkpoint_ns": ""}}
        kept = await saver_of(manager).aget_tuple(config)
        assert kept is not None
        assert kept.checkpoint["id"] == held.ids[-1]


@pytest.mark.parametrize("journal", ["durable", "memory", "off"])
async def test_thread_that_another_process_on_the_machine_has_in_its_journal_is_left_alone(
    journal: str, tmp_path: Path
) -> None:
    async with (
        switched("sqlite", "", tmp_path / "checkpoints.sqlite", journal_dir=tmp_path / "journal") as primary,
        stage("sqlite", "", tmp_path) as place,
    ):
        sweeping = await place.manager(journal=journal)
        held, free = Thread(saver_of(primary.manager), "held"), Thread(saver_of(primary.manager), "free")
        for thread in (held, free):
            await thread.put()
        await primary.off()
        await held.put()
        keep_from_draining(primary.manager)
        await primary.on()
        await eventually(lambda: primary.manager.health_status["primary_healthy"])
        let_pass(sweeping, 100)
        found = await sweeping.run_retention()
        assert (found.deleted, found.kept) == (1, {"the journal holds something of it": 1}), found


async def test_thread_that_a_journal_holds_for_a_database_of_another_name_is_left_alone(tmp_path: Path) -> None:
    """It may be the same one."""
    async with stage("sqlite", "", tmp_path) as place:
        sweeping = await place.manager(journal="memory", journal_dir=tmp_path / "journal")
        for thread_id in ("held", "free"):
            await Thread(saver_of(sweeping), thread_id).put()
        async with opened_journal(tmp_path / "journal", home="db.example:5432/chat") as journal:
            await add(journal, "held")
        let_pass(sweeping, 100)
        found = await sweeping.run_retention()
        assert (found.deleted, found.kept) == (1, {"the journal holds something of it": 1}), found


async def test_thread_that_another_process_begins_to_journal_during_a_sweep_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        switched("sqlite", "", tmp_path / "checkpoints.sqlite", journal_dir=tmp_path / "journal") as primary,
        stage("sqlite", "", tmp_path) as place,
    ):
        sweeping = await place.manager(journal="memory")
        held, free = Thread(saver_of(primary.manager), "held"), Thread(saver_of(primary.manager), "free")
        for thread in (held, free):
            await thread.put()
        sweeper = sweeping.components.sweeper
        look = sweeper._held_elsewhere

        async def look_just_before() -> Collection[str]:
            found = await look()
            monkeypatch.undo()
            await primary.off()
            await held.put()
            keep_from_draining(primary.manager)
            await primary.on()
            return found

        monkeypatch.setattr(sweeper, "_held_elsewhere", look_just_before)
        let_pass(sweeping, 100)
        found = await sweeping.run_retention()
        assert (found.deleted, found.kept) == (1, {"the journal holds something of it": 1}), found


async def test_sweep_stops_where_the_journals_cannot_be_read(tmp_path: Path) -> None:
    async with stage("sqlite", "", tmp_path) as place:
        manager = await place.manager(journal="memory", journal_dir=tmp_path / "checkpoints.sqlite")
        await Thread(saver_of(manager), "thread").put()
        let_pass(manager, 100)
        found = await manager.run_retention()
        assert found.deleted == 0
        assert "cannot read the journals" in str(found.stopped)


async def test_what_a_process_elsewhere_has_in_its_journal_outlives_the_deletion_of_its_thread(
    database_url: str, tmp_path: Path
) -> None:
    config: RunnableConfig = {"configurable": {"thread_id": "thread", "checkpoint_ns": ""}}
    async with (
        switched("postgres", database_url, tmp_path / "checkpoints.sqlite", journal_dir=tmp_path / "other") as primary,
        stage("postgres", database_url, tmp_path) as place,
    ):
        sweeping, thread = await place.manager(), Thread(saver_of(primary.manager), "thread")
        for _ in range(3):
            await thread.put()
        await primary.off()
        await thread.put()
        shown = await saver_of(primary.manager).aget_tuple(config)
        assert shown is not None
        let_pass(sweeping, 100)
        assert (await sweeping.run_retention()).deleted == 1
        await primary.on()
        await recovered(primary.manager)
        found = await saver_of(sweeping).aget_tuple(config)
        assert found is not None
        assert found.checkpoint == shown.checkpoint


@pytest.mark.parametrize("backend", ON_DISK)
async def test_of_two_that_sweep_at_once_one_does(backend: str, database_url: str, tmp_path: Path) -> None:
    async with stage(backend, database_url, tmp_path) as place:
        managers = [await place.manager(), await place.manager()]
        for number in range(30):
            await Thread(saver_of(managers[0]), f"thread-{number}").put()
        for manager in managers:
            let_pass(manager, 100)
        found = await asyncio.gather(*(manager.run_retention() for manager in managers))
        assert sorted(one.deleted for one in found) == [0, 30]
        assert sorted(one.sole for one in found) == [False, True]
        again = await managers[0].run_retention(), await managers[1].run_retention()
        assert all(one.sole for one in again), "each gives back what it had"


@pytest.mark.parametrize("backend", BACKENDS)
async def test_sweep_stops_at_an_outage_and_goes_on_where_it_was(
    backend: str, database_url: str, tmp_path: Path
) -> None:
    async with switched(
        backend, database_url, tmp_path / "checkpoints.sqlite", journal_dir=tmp_path / "journal"
    ) as primary:
        manager = primary.manager
        threads = 250
        await asyncio.gather(*(Thread(saver_of(manager), f"thread-{n:03}").put() for n in range(threads)))
        let_pass(manager, 100)
        sweeper, gone = sweeper_of(manager), 0

        async def at_the_second_look(*arguments: Any, **named: Any) -> Any:
            nonlocal gone
            gone += 1
            if gone == 7:
                await primary.off()
            return await revise(*arguments, **named)

        revise = sweeper._maintenance.change
        sweeper._maintenance.change = at_the_second_look  # type: ignore[method-assign]
        stopped = await sweeper.run(resume=True)
        assert stopped.stopped is not None
        assert 0 < stopped.deleted < threads
        await primary.on()
        await recovered(manager)
        rest = await sweeper.run(resume=True)
        assert rest.complete
        assert stopped.deleted + rest.deleted == threads
        assert rest.looked_at < threads
        assert await left(manager) == set()


@pytest.mark.parametrize("backend", ON_DISK)
async def test_read_keeps_a_thread_if_that_is_wanted_and_other_processes_know(
    backend: str, database_url: str, tmp_path: Path
) -> None:
    async with stage(backend, database_url, tmp_path) as place:
        fields: dict[str, Any] = {"retention": "on", "retention_interval": 3600.0, "retention_refresh_on_read": True}
        manager, other = await place.manager(**fields), await place.manager(retention_refresh_on_read=True)
        for name in ("read", "unread"):
            await Thread(saver_of(other), name).put()
        reads = sweeper_of(manager)._engine.reads
        assert reads is not None
        in_five_days = datetime.now(UTC) + timedelta(days=5)
        reads._wall_clock = in_five_days.timestamp
        config: RunnableConfig = {"configurable": {"thread_id": "read", "checkpoint_ns": ""}}
        assert await saver_of(manager).aget_tuple(config) is not None
        let_pass(manager, 5.1)
        found = await manager.run_retention()
        assert found.touched == 1, found.stopped
        assert (await manager.run_retention()).touched == 0
        let_pass(other, 8)
        assert (await other.run_retention()).deleted == 1
        assert await left(other) == {"read"}
        let_pass(other, 13)
        assert (await other.run_retention()).deleted == 1


async def test_reads_are_not_noted_unless_retention_is_on(tmp_path: Path) -> None:
    async with stage("memory", "", tmp_path) as place:
        assert sweeper_of(await place.manager())._engine.reads is None


@pytest.mark.parametrize("backend", BACKENDS)
async def test_retention_that_is_on_sweeps_by_itself_and_off_does_not(
    backend: str, database_url: str, tmp_path: Path
) -> None:
    async with stage(backend, database_url, tmp_path) as place:
        manager = await place.manager(retention="on", retention_interval=1.0)
        await Thread(saver_of(manager), "thread").put()
        let_pass(manager, 8)
        async with asyncio.timeout(10):
            while await left(manager):  # noqa: ASYNC110  # what is waited for signals nothing
                await asyncio.sleep(0.05)


def test_retention_runs_without_a_loop(tmp_path: Path) -> None:
    from enhanced_checkpointing import create_sqlite_checkpointer

    config = create_sqlite_checkpointer(str(tmp_path / "file.sqlite"), journal_dir=tmp_path / "journal")
    with EnhancedCheckpointerManager(config) as manager:
        graph = GRAPHS["counting_chain"].builder().compile(checkpointer=saver_of(manager))
        graph.invoke({"question": "why"}, {"configurable": {"thread_id": "thread"}})
        let_pass(manager, 100)
        found: Sweep = manager.run_retention_sync()
        assert found.deleted == 1
        assert manager.list_threads_sync() == []


async def test_value_that_cannot_be_read_keeps_no_thread_from_going(database_url: str, tmp_path: Path) -> None:
    import psycopg

    async with stage("postgres", database_url, tmp_path) as place:
        manager = await place.manager()
        for name in ("broken", "sound"):
            await run(manager, "unchanged_channel", name)
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute("UPDATE checkpoint_blobs SET type = 'unheard of' WHERE thread_id = 'broken'")
        let_pass(manager, 100)
        found = await manager.run_retention()
        assert (found.deleted, found.failed) == (2, 0), "values are not read to judge a thread"
        assert await left(manager) == set()


@pytest.mark.parametrize("backend", BACKENDS)
async def test_joins_and_whole_values_of_delta_channels_are_judged_without_making_objects(
    backend: str, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A join that waits for more nodes has a set of names, and a delta channel's whole value an object of LangGraph's:
    which node is still to run is told by their bytes."""
    serde, made = JsonPlusSerializer(), list[int]()
    make = serde._unpack_ext_hook

    def seen(code: int, data: bytes) -> object:
        made.append(code)
        return make(code, data)

    monkeypatch.setattr(serde, "_unpack_ext_hook", seen)
    async with stage(backend, database_url, tmp_path) as place:
        manager = await place.manager(serde=serde)
        await run(manager, "parallel", "half joined", interrupt_before=["left", "middle"])
        await run(manager, "parallel", "joined", interrupt_before=["join"])
        for name in ("parallel", "delta_channel"):
            await run(manager, name, f"done {name}", turns=3)
        await run(manager, "delta_channel", "stopped", interrupt_before=["second"])
        assert made, "an application's own read makes objects, and it is seen here"
        let_pass(manager, 10_000)
        made.clear()
        found = await manager.run_retention(RetentionPolicy(0, 0, 0))
        assert (found.failed, made) == (0, [])
        assert await left(manager) == {"half joined", "joined", "stopped"}
        assert (await state(manager, "parallel", "joined"))["log"]
