"""Pruned, copied and partly deleted threads go on as if nothing had happened: every graph, every database."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, TypedDict

import langgraph.channels
import psycopg
import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from enhanced_checkpointing import CheckpointerError, EnhancedCheckpointerManager, create_memory_checkpointer
from enhanced_checkpointing.backends.memory.backend import MaintainedMemorySaver
from enhanced_checkpointing.backends.sqlite import maintenance as sqlite_maintenance
from tests.support.backends import BACKENDS, checkpoint_id, config_of, opened_backend, put, write
from tests.support.checkpointer import FAST, opened, postgres, saver_of, sqlite
from tests.support.graphs import GRAPHS, Durability, GraphCase, chain, extend, on_node, say


class Seldom(TypedDict, total=False):
    """The log as a delta channel that is whole at every fourth write, so in the midst of a turn of three."""

    log: Annotated[list[str], langgraph.channels.DeltaChannel(extend, list, snapshot_frequency=4)]
    question: str


class Never(TypedDict, total=False):
    """The log as a delta channel that is never whole."""

    log: Annotated[list[str], langgraph.channels.DeltaChannel(extend, list, snapshot_frequency=1_000)]
    question: str


def delta_case(name: str, state: type) -> GraphCase:
    nodes = {name: say(name) for name in ("first", "second", "third")}
    return GraphCase(name, lambda: chain(state, nodes), tuple({"question": word} for word in ("why", "what", "when")))


DELTA = {
    name: delta_case(name, state)
    for name, state in (("seldom_whole", Seldom), ("never_whole", Never))
    if "delta_channel" in GRAPHS
}
CASES = {**GRAPHS, **DELTA}
EVERY_BACKEND = pytest.mark.parametrize("backend", BACKENDS)
EVERY_GRAPH = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@asynccontextmanager
async def managed(backend: str, database_url: str, folder: Path) -> AsyncIterator[EnhancedCheckpointerManager]:
    config = {
        "memory": lambda: create_memory_checkpointer(**FAST),
        "sqlite": lambda: sqlite(folder / "primary.sqlite", deadline=5.0),
        "postgres": lambda: postgres(database_url, deadline=5.0),
    }[backend]()
    async with opened(config) as manager:
        yield manager


Between = Callable[[str], Awaitable[None]]


class Conversation:
    """A graph and a thread; each turn is a run of its own, which its checkpoints name."""

    def __init__(self, case: GraphCase, manager: EnhancedCheckpointerManager, thread_id: str) -> None:
        self.case, self.thread_id = case, thread_id
        self._graph = case.builder().compile(checkpointer=saver_of(manager))

    @property
    def config(self) -> RunnableConfig:
        return {"configurable": {"thread_id": self.thread_id}}

    async def turn(self, number: int, durability: Durability = "sync") -> None:
        config: RunnableConfig = {**self.config, "metadata": {"run_id": f"{self.thread_id}, run {number}"}}
        await self._graph.ainvoke(self.case.turns[number], config, durability=durability)

    async def run(self, *, after: Between | None = None, durability: Durability = "sync") -> None:
        for number, _ in enumerate(self.case.turns):
            await self.turn(number, durability)
            if after is not None:
                await after(self.thread_id)

    async def state(self) -> Any:
        """All that the thread can tell about now: values, what comes next, and what is asked of people."""
        found = await self._graph.aget_state(self.config, subgraphs=True)
        asked = [[one.value for one in task.interrupts] for task in found.tasks]
        return dict(found.values), found.next, asked

    async def history(self) -> list[Any]:
        return [(one.config, dict(one.values), one.next) async for one in self._graph.aget_state_history(self.config)]


async def checkpoints(manager: EnhancedCheckpointerManager, thread_id: str) -> list[Any]:
    config: RunnableConfig = {"configurable": {"thread_id": thread_id}}
    return [found async for found in saver_of(manager).alist(config)]


@EVERY_BACKEND
@EVERY_GRAPH
async def test_thread_that_is_pruned_after_every_turn_says_what_its_twin_says(
    backend: str, case: GraphCase, database_url: str, tmp_path: Path
) -> None:
    async with managed(backend, database_url, tmp_path) as manager:

        async def prune(thread_id: str) -> None:
            before = await pruned.state()
            await manager.prune([thread_id])
            assert await pruned.state() == before

        for durability in ("sync", "exit"):
            twin = Conversation(case, manager, f"twin {durability}")
            pruned = Conversation(case, manager, f"pruned {durability}")
            await twin.run(durability=durability)
            await pruned.run(durability=durability, after=prune)
            assert await pruned.state() == await twin.state()
            kept, all_of_twin = await checkpoints(manager, pruned.thread_id), await checkpoints(manager, twin.thread_id)
            of_root = [found for found in kept if not found.config["configurable"]["checkpoint_ns"]]
            assert len(of_root) == 1 or case.name in DELTA
            assert len(kept) < len(all_of_twin) or (case.name == "never_whole" and len(kept) == len(all_of_twin))
            ids = {found.checkpoint["id"] for found in kept}
            parents = [found.parent_config["configurable"]["checkpoint_id"] for found in kept if found.parent_config]
            assert {*parents} <= ids, "what stays must not name a parent that went"


@EVERY_BACKEND
@EVERY_GRAPH
async def test_thread_that_is_pruned_in_mid_run_says_what_its_twin_says(
    backend: str, case: GraphCase, database_url: str, tmp_path: Path
) -> None:
    async with managed(backend, database_url, tmp_path) as manager:
        twin, pruned = (Conversation(case, manager, name) for name in ("twin", "pruned"))
        await twin.run()
        token = on_node.set(lambda _: manager.prune(["pruned"]))
        try:
            await pruned.run()
        finally:
            on_node.reset(token)
        assert await pruned.state() == await twin.state()


@EVERY_BACKEND
@EVERY_GRAPH
async def test_copy_has_the_whole_history_and_goes_its_own_way(
    backend: str, case: GraphCase, database_url: str, tmp_path: Path
) -> None:
    async with managed(backend, database_url, tmp_path) as manager:
        source, twin = (Conversation(case, manager, name) for name in ("source", "twin"))
        await twin.run()
        for number, _ in enumerate(case.turns[:-1]):
            await source.turn(number)
        before = await source.history()
        copy = Conversation(case, manager, await manager.copy_thread("source"))
        assert await copy.state() == await source.state()
        assert [one[1:] for one in await copy.history()] == [one[1:] for one in before]
        assert len(await checkpoints(manager, copy.thread_id)) == len(await checkpoints(manager, "source"))
        await copy.turn(len(case.turns) - 1)
        assert await copy.state() == await twin.state()
        assert await source.history() == before


@EVERY_BACKEND
@EVERY_GRAPH
async def test_deleted_run_is_gone_and_what_came_of_it_stays(
    backend: str, case: GraphCase, database_url: str, tmp_path: Path
) -> None:
    async with managed(backend, database_url, tmp_path) as manager:
        twin, other, cut = (Conversation(case, manager, name) for name in ("twin", "other", "cut"))
        for conversation in (twin, other):
            await conversation.run()
        last = len(case.turns) - 1
        for number in range(last + 1):
            await cut.turn(number)
            before = await cut.state()
            await manager.delete_for_runs([f"cut, run {number - 1}", "no such run"])
            assert await cut.state() == before
        assert await cut.state() == await twin.state()
        assert await other.state() == await twin.state()
        left = [one.metadata.get("run_id") for one in await checkpoints(manager, "cut")]
        if not hasattr(case.builder().channels.get("log"), "snapshot_frequency"):  # of which older runs are part
            assert {*left} == {f"cut, run {last}"}
        ids = {found.checkpoint["id"] for found in await checkpoints(manager, "cut")}
        for found in await checkpoints(manager, "cut"):
            assert found.parent_config is None or found.parent_config["configurable"]["checkpoint_id"] in ids


@EVERY_BACKEND
async def test_thread_of_which_the_last_run_is_deleted_goes_on_from_where_it_was_before(
    backend: str, database_url: str, tmp_path: Path
) -> None:
    async with managed(backend, database_url, tmp_path) as manager:
        for case in CASES.values():
            if case.resumes:  # an answer is written on the checkpoint that asked, and nothing tells by whom
                continue
            twin, cut = (Conversation(case, manager, f"{case.name}, {name}") for name in ("twin", "cut"))
            for conversation in (twin, cut):
                await conversation.turn(0)
            before = await cut.state()
            await cut.turn(1)
            await manager.delete_for_runs([f"{cut.thread_id}, run 1"])
            assert await cut.state() == before
            await twin.turn(1)
            await cut.turn(1)
            assert await cut.state() == await twin.state(), case.name


@EVERY_BACKEND
async def test_pruning_leaves_no_value_and_no_write_that_nobody_can_read(
    backend: str, database_url: str, tmp_path: Path
) -> None:
    async with managed(backend, database_url, tmp_path) as manager:
        for case in CASES.values():
            await Conversation(case, manager, case.name).run()
        await manager.prune([*CASES])
        if backend == "memory":
            saver = manager.components.backend.saver
            assert isinstance(saver, MaintainedMemorySaver)
            known = {
                (thread_id, namespace, checkpoint_id): saver._versions(thread_id, namespace, checkpoint_id)
                for thread_id, namespaces in saver.storage.items()
                for namespace, stored in namespaces.items()
                for checkpoint_id in stored
            }
            assert {key for key, writes in saver.writes.items() if writes} <= known.keys()
            used = {(*key[:2], *one) for key, versions in known.items() for one in versions.items()}
            assert saver.blobs.keys() <= used
        elif backend == "postgres":
            with psycopg.connect(database_url) as connection:
                assert connection.execute(UNREADABLE_SQL).fetchall() == []


UNREADABLE_SQL = """
SELECT thread_id, checkpoint_ns, channel FROM checkpoint_blobs AS blob WHERE NOT EXISTS (
    SELECT FROM checkpoints AS one WHERE one.thread_id = blob.thread_id AND one.checkpoint_ns = blob.checkpoint_ns
        AND one.checkpoint -> 'channel_versions' ->> blob.channel = blob.version
)
UNION ALL
SELECT thread_id, checkpoint_ns, channel FROM checkpoint_writes AS written WHERE NOT EXISTS (
    SELECT FROM checkpoints AS one
    WHERE one.thread_id = written.thread_id AND one.checkpoint_ns = written.checkpoint_ns
        AND one.checkpoint_id = written.checkpoint_id
)
"""


@pytest.mark.parametrize("backend", ["sqlite", "postgres"])
async def test_thread_that_the_bare_saver_wrote_is_pruned_as_safely(
    backend: str, database_url: str, tmp_path: Path
) -> None:
    path = str(tmp_path / "primary.sqlite")
    bare = AsyncPostgresSaver if backend == "postgres" else AsyncSqliteSaver
    async with bare.from_conn_string(database_url if backend == "postgres" else path) as saver:
        await saver.setup()
        for case in CASES.values():
            graph = case.builder().compile(checkpointer=saver)
            for turn in case.turns[:2]:
                await graph.ainvoke(turn, {"configurable": {"thread_id": case.name}})
    async with managed(backend, database_url, tmp_path) as manager:
        for case in CASES.values():
            conversation = Conversation(case, manager, case.name)
            before = await conversation.state()
            await manager.prune([case.name])
            assert await conversation.state() == before


@EVERY_BACKEND
async def test_pruning_with_delete_leaves_nothing_of_these_threads_alone(
    backend: str, database_url: str, tmp_path: Path
) -> None:
    async with managed(backend, database_url, tmp_path) as manager:
        case = CASES["subgraph"]
        for name in ("gone", "gone too", "stays"):
            await Conversation(case, manager, name).run()
        before = await checkpoints(manager, "stays")
        await manager.prune(["gone", "gone too", "never there"], strategy="delete")
        assert await checkpoints(manager, "gone") == await checkpoints(manager, "gone too") == []
        assert await checkpoints(manager, "stays") == before
        assert [thread["thread_id"] for thread in await manager.list_threads()] == ["stays"]


@EVERY_BACKEND
async def test_copy_into_a_thread_of_its_own_is_refused_and_one_begun_before_is_completed(
    backend: str, database_url: str, tmp_path: Path
) -> None:
    async with managed(backend, database_url, tmp_path) as manager:
        source, own = (Conversation(GRAPHS["subgraph"], manager, name) for name in ("source", "own"))
        await source.turn(0)
        await own.turn(0)
        before = await own.history()
        with pytest.raises(CheckpointerError, match="'own' has checkpoints that thread 'source' has not"):
            await manager.copy_thread("source", "own")
        assert await own.history() == before
        assert await manager.copy_thread("source", "copy") == "copy"
        await source.turn(1)
        assert await manager.copy_thread("source", "copy") == "copy"
        assert await manager.copy_thread("source", "source") == "source"
        assert len(await checkpoints(manager, "copy")) == len(await checkpoints(manager, "source"))
        assert await Conversation(source.case, manager, "copy").state() == await source.state()


@EVERY_BACKEND
async def test_what_cannot_be_asked_is_refused_before_anything_goes(
    backend: str, database_url: str, tmp_path: Path
) -> None:
    async with managed(backend, database_url, tmp_path) as manager:
        conversation = Conversation(GRAPHS["counting_chain"], manager, "thread")
        await conversation.run()
        before = await conversation.history()
        with pytest.raises(ValueError, match="no strategy 'oldest'"):
            await manager.prune(["thread"], strategy="oldest")
        with pytest.raises(TypeError, match="not a str"):
            await manager.prune("thread")
        with pytest.raises(TypeError, match="not a text"):
            await manager.delete_for_runs("run")
        await manager.prune([])
        await manager.delete_for_runs([])
        assert await conversation.history() == before
        assert manager.health_status["overall_status"] == "healthy"


async def test_pruning_of_a_file_that_was_broken_off_is_completed_by_the_next(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_maintenance, "DROPPED_AT_ONCE", 2)
    async with managed("sqlite", database_url, tmp_path) as manager:
        for case in (CASES["subgraph"], CASES["counting_chain"]):
            conversation = Conversation(case, manager, case.name)
            await conversation.run()
            before, count = await conversation.state(), len(await checkpoints(manager, case.name))
            with monkeypatch.context() as broken:
                broken.setattr(sqlite_maintenance, "_drop", broken_off)
                with pytest.raises(KeyError, match="broken off"):
                    await manager.prune([case.name])
            assert 0 < count - len(await checkpoints(manager, case.name)) <= 2
            assert await conversation.state() == before
            await manager.prune([case.name])
            assert len(await checkpoints(manager, case.name)) <= count - 4
            assert await conversation.state() == before


def broken_off(*_: Any, **__: Any) -> None:
    raise KeyError("broken off")


@EVERY_BACKEND
@pytest.mark.parametrize("value", ["a text", b"\x91\xa1x"], ids=["inline", "apart"])
async def test_chain_ends_where_a_value_is_stored_whatever_it_is(
    backend: str, value: str | bytes, database_url: str, tmp_path: Path
) -> None:
    counted = {"counters_since_delta_snapshot": {"log": [1, 1]}}
    async with opened_backend(config_of(backend, database_url, tmp_path)) as primary:
        for operation in (
            put("thread", 1, without_value=["log"], metadata=counted),
            put("thread", 2, parent=1, values={"log": value}),
            put("thread", 3, parent=2, without_value=["log"], metadata=counted),
            put("thread", 4, parent=3, without_value=["log", "other"], metadata=counted),
        ):
            await primary.apply(operation)
        await primary.ask(lambda saver: saver.aprune(["thread"]))
        (head,) = await primary.describe(["thread"])
        assert (head.checkpoint_id, head.checkpoints) == (checkpoint_id(4), 3)


async def test_postgres_checkpoint_of_an_old_format_keeps_the_parent_that_holds_its_sends(
    database_url: str, tmp_path: Path
) -> None:
    old = put("thread", 3, parent=2)
    async with opened_backend(config_of("postgres", database_url, tmp_path)) as primary:
        for operation in (
            put("thread", 1),
            put("thread", 2, parent=1),
            write("thread", 2, "__pregel_tasks", b"\xa4send"),
            replace(old, skeleton={**old.skeleton, "v": 2}),
        ):
            await primary.apply(operation)
        config: RunnableConfig = {"configurable": {"thread_id": "thread", "checkpoint_ns": ""}}
        before, _ = await primary.get(config)
        assert before is not None
        assert before.checkpoint["channel_values"]["__pregel_tasks"] == ["send"]
        await primary.ask(lambda saver: saver.aprune(["thread"]))
        after, _ = await primary.get(config)
        (head,) = await primary.describe(["thread"])
        assert head.checkpoints == 2
        assert after is not None
        assert after.checkpoint["channel_values"] == before.checkpoint["channel_values"]
