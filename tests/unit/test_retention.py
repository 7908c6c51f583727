"""Which threads go, decided without any database: by age, status, and what somebody still waits for."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.runnables import RunnableConfig
from langgraph.channels import LastValue
from langgraph.checkpoint.base import CheckpointTuple, empty_checkpoint
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, StateGraph
from langgraph.pregel import NodeBuilder, Pregel
from langgraph.types import Command, Send, interrupt

from enhanced_checkpointing import create_memory_checkpointer
from enhanced_checkpointing.backends.listing import ThreadHead, status_of
from enhanced_checkpointing.threads.retention import (
    AGELESS,
    IN_JOURNAL,
    IN_USE,
    YOUNG_ONE,
    Decision,
    Delete,
    Keep,
    Prune,
    RetentionPolicy,
    ThreadState,
    decide,
    decide_again,
    is_interrupted,
    policy_of,
    touched_at,
    wants_touch,
)
from tests.support.graphs import GRAPHS, Log, chain, node, say

NOW = datetime(2026, 6, 1, tzinfo=UTC)
POLICY = RetentionPolicy()


def head(days: float | None, **fields: Any) -> ThreadHead:
    """A thread of which the newest checkpoint is so many days old."""
    updated_at = NOW - timedelta(days=days) if days is not None else None
    known: dict[str, Any] = {"metadata": {}, "checkpoints": 10, "size": 1000, **fields}
    return ThreadHead("thread", "checkpoint", updated_at, **known)


def marked(status: str, days: float, **more: Any) -> ThreadHead:
    return head(days, metadata={"thread_status": status, **more})


def verdict(one: ThreadHead, policy: RetentionPolicy = POLICY, **state: Any) -> Decision:
    return decide(one, ThreadState(**state), policy, NOW)


@pytest.mark.parametrize(("status", "days"), [("active", 7), ("completed", 30), ("failed", 3), ("of another kind", 7)])
def test_thread_goes_when_the_days_of_its_status_are_over(status: str, days: int) -> None:
    assert isinstance(verdict(marked(status, days - 0.1)), Keep)
    assert isinstance(verdict(marked(status, days + 0.1)), Delete)


def test_time_counts_from_the_last_touch_if_that_is_later() -> None:
    def touched(days: float) -> dict[str, str]:
        return {"touched_at": (NOW - timedelta(days=days)).isoformat()}

    assert isinstance(verdict(head(100, metadata=touched(6))), Keep)
    assert isinstance(verdict(head(100, metadata=touched(8))), Delete)
    assert isinstance(verdict(head(6, metadata=touched(8))), Keep)


@pytest.mark.parametrize("told", ["yesterday", None, 5, "2026-05-31T00:00:00"])
def test_touch_that_is_no_time_with_a_zone_counts_for_nothing(told: object) -> None:
    assert touched_at({"touched_at": told}) is None
    assert isinstance(verdict(head(8, metadata={"touched_at": told})), Delete)


def test_journaled_thread_is_kept_whatever_its_age() -> None:
    assert verdict(head(1000), journaled=True) is IN_JOURNAL


def test_thread_without_an_age_is_kept() -> None:
    assert verdict(head(None)) is AGELESS


def test_checkpoint_of_the_last_minute_is_kept_even_if_nothing_else_is() -> None:
    nothing = RetentionPolicy(0, 0, 0, keep=1)
    assert verdict(head(30 / 86_400), nothing) is YOUNG_ONE
    assert isinstance(verdict(head(90 / 86_400), nothing), Delete)


def test_thread_that_this_process_has_just_read_is_kept() -> None:
    assert verdict(head(100), read_at=NOW - timedelta(seconds=30)) is IN_USE
    assert isinstance(verdict(head(100), read_at=NOW - timedelta(seconds=90)), Delete)


def test_read_counts_as_use_only_if_asked_for() -> None:
    read_at = NOW - timedelta(days=2)
    assert isinstance(verdict(head(100), read_at=read_at), Delete)
    assert isinstance(verdict(head(100), RetentionPolicy(refresh_on_read=True), read_at=read_at), Keep)


def test_long_thread_is_pruned_and_an_old_one_deleted_all_the_same() -> None:
    policy = RetentionPolicy(keep=9)
    assert verdict(head(1), policy) == Prune(9, "it has more than 9 checkpoints")
    assert isinstance(verdict(head(1, checkpoints=9), policy), Keep)
    assert isinstance(verdict(head(8), policy), Delete)


def test_unfinished_thread_is_neither_deleted_nor_pruned_and_the_reason_says_why() -> None:
    assert verdict(head(1000), unfinished="it waits") == Keep("it waits")
    assert verdict(head(1), RetentionPolicy(keep=1), unfinished="it waits") == Keep("it waits")


@given(
    st.floats(0, 10_000),
    st.sampled_from([{}, {"thread_status": "completed"}, {"thread_status": "failed"}]),
    st.builds(RetentionPolicy, *[st.floats(0, 100)] * 3, st.none() | st.integers(1, 5), st.booleans()),
    st.booleans(),
    st.sampled_from([None, "it waits"]),
    st.integers(1, 100),
)
def test_nothing_interrupted_or_journaled_is_ever_touched(
    days: float,
    metadata: dict[str, str],
    policy: RetentionPolicy,
    journaled: bool,
    unfinished: str | None,
    checkpoints: int,
) -> None:
    decision = verdict(
        head(days, metadata=metadata, checkpoints=checkpoints), policy, journaled=journaled, unfinished=unfinished
    )
    assert isinstance(decision, Keep) or not (journaled or unfinished)


def test_read_is_written_down_once_in_a_tenth_of_the_time() -> None:
    def wanted(one: ThreadHead, days_ago: float) -> bool:
        return wants_touch(one, NOW - timedelta(days=days_ago), POLICY)

    assert wanted(head(2), 1)
    assert not wanted(head(2), 1.5)
    assert not wanted(marked("completed", 2), 0)
    assert wanted(marked("completed", 4), 0)
    assert not wanted(head(9, metadata={"touched_at": (NOW - timedelta(days=0.5)).isoformat()}), 0)
    assert not wanted(head(None), 0)


@pytest.mark.parametrize("fields", [{"keep": 0}, {"keep": -1}, {"active_days": -1}, {"failed_days": -0.1}])
def test_policy_that_makes_no_sense_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"at least 1|less than 0"):
        RetentionPolicy(**fields)


def test_policy_is_what_the_settings_say() -> None:
    assert policy_of(create_memory_checkpointer()) == RetentionPolicy()
    config = create_memory_checkpointer(
        retention_active_days=1,
        retention_completed_days=2,
        retention_failed_days=0.5,
        retention_keep=4,
        retention_refresh_on_read=True,
    )
    assert policy_of(config) == RetentionPolicy(1, 2, 0.5, 4, True)


# Who waits: real graphs, real checkpoints

CONFIG: RunnableConfig = {"configurable": {"thread_id": "thread"}}
Durability = Literal["sync", "exit"]


def newest(saver: InMemorySaver) -> CheckpointTuple:
    found = saver.get_tuple({"configurable": {"thread_id": "thread", "checkpoint_ns": ""}})
    assert found is not None
    return found


@pytest.mark.parametrize("durability", ["sync", "exit"])
@pytest.mark.parametrize("name", GRAPHS)
async def test_thread_is_interrupted_just_while_langgraph_has_something_next(name: str, durability: Durability) -> None:
    """After each turn of every kind of graph: functions, branches, sends, subgraphs, questions, delta channels."""
    saver, case = InMemorySaver(), GRAPHS[name]
    graph = case.builder().compile(checkpointer=saver)
    for turn in case.turns:
        await graph.ainvoke(turn, CONFIG, durability=durability)
        waits = bool((await graph.aget_state(CONFIG)).next)
        assert is_interrupted(newest(saver)) is waits, turn


@pytest.mark.parametrize("name", [name for name, case in GRAPHS.items() if not case.resumes])
@pytest.mark.parametrize("when", ["interrupt_before", "interrupt_after"])
async def test_every_stop_at_a_breakpoint_is_an_interruption(name: str, when: str) -> None:
    saver, case, stops = InMemorySaver(), GRAPHS[name], 0
    nodes: Any = {when: "*"}
    graph = case.builder().compile(checkpointer=saver, **nodes)
    turn = case.turns[0]
    for _ in range(20):
        await graph.ainvoke(turn, CONFIG)
        waits = bool((await graph.aget_state(CONFIG)).next)
        assert is_interrupted(newest(saver)) is waits
        if not waits:
            break
        stops, turn = stops + 1, None
    assert stops > 1


async def test_breakpoint_within_a_subgraph_is_an_interruption() -> None:
    saver = InMemorySaver()
    inner = chain(Log, {"one": say("one"), "two": say("two")}).compile(interrupt_before=["two"])
    graph = chain(Log, {"outer": inner, "last": say("last")}).compile(checkpointer=saver)
    await graph.ainvoke({"question": "why"}, CONFIG)
    assert is_interrupted(newest(saver))
    await graph.ainvoke(None, CONFIG)
    assert not is_interrupted(newest(saver))


async def test_failed_node_waits_for_nobody_but_a_question_beside_it_does() -> None:
    def fail(state: Log) -> Any:
        raise ValueError("no")

    def ask(state: Log) -> Any:
        return {"log": [interrupt("why?")]}

    for with_question in (False, True):
        saver = InMemorySaver()
        builder = StateGraph(Log)
        builder.add_node("fails", fail)
        builder.add_edge(START, "fails")
        if with_question:
            builder.add_node("asks", ask)
            builder.add_edge(START, "asks")
        graph = builder.compile(checkpointer=saver)
        with pytest.raises(ValueError, match="no"):
            await graph.ainvoke({"question": "why"}, CONFIG)
        assert is_interrupted(newest(saver)) is any(
            channel == "__interrupt__" for _, channel, _ in newest(saver).pending_writes or ()
        )
        if not with_question:
            assert not is_interrupted(newest(saver))


async def test_send_that_has_not_run_is_an_interruption() -> None:
    saver = InMemorySaver()
    builder = StateGraph(Log)
    builder.add_node("plan", node("plan", say("plan")))
    builder.add_node("work", node("work", say("work")))
    builder.add_edge(START, "plan")
    builder.add_conditional_edges("plan", lambda state: [Send("work", state)], ["work"])
    builder.add_edge("work", END)
    graph = builder.compile(checkpointer=saver, interrupt_before=["work"])
    await graph.ainvoke({"question": "why"}, CONFIG)
    assert is_interrupted(newest(saver))
    await graph.ainvoke(None, CONFIG)
    assert not is_interrupted(newest(saver))


async def test_graph_of_a_kind_that_is_not_known_is_kept_when_in_doubt_unless_it_is_marked() -> None:
    """A node that never ran left nothing behind that says which channel it waits for."""
    saver = InMemorySaver()
    nodes: Any = {
        "one": NodeBuilder().subscribe_only("a").do(lambda value: value + "1").write_to("b"),
        "two": NodeBuilder().subscribe_only("b").do(lambda value: value + "2").write_to("c"),
    }
    channels: Any = {name: LastValue(str) for name in "abc"}
    for stops, turn in ((["two"], {"a": "0"}), ([], None)):
        graph: Any = Pregel(
            nodes=nodes,
            channels=channels,
            input_channels=["a"],
            output_channels=["c"],
            interrupt_before_nodes=stops,
            checkpointer=saver,
        )
        await graph.ainvoke(turn, CONFIG)
        assert (await graph.aget_state(CONFIG)).next == (("two",) if stops else ())
        assert is_interrupted(newest(saver)), "the next node, or none: it looks the same"
    done: Any = {**newest(saver).metadata, "thread_status": "completed"}
    assert not is_interrupted(newest(saver)._replace(metadata=done))


@pytest.mark.parametrize("next_channel", ["start:a", "branch:a:condition:b", "a"])
def test_breakpoint_of_an_older_release_is_an_interruption(next_channel: str) -> None:
    """As langgraph 0.2 stored it, before the first node, behind a condition, and behind an edge."""
    checkpoint = empty_checkpoint()
    checkpoint |= {
        "v": 2,
        "channel_values": {"log": ["a"], next_channel: "a"},
        "channel_versions": {"__start__": "2", "log": "3", next_channel: "3"},
        "versions_seen": {"__input__": {}, "__start__": {"__start__": "1"}},
    }
    found = CheckpointTuple(CONFIG, checkpoint, {"source": "loop", "step": 1})
    assert is_interrupted(found)


async def test_functional_workflow_is_interrupted_by_its_question_only() -> None:
    saver = InMemorySaver()

    @task
    async def draft(what: str) -> str:
        return f"draft of {what}"

    @entrypoint(checkpointer=saver)
    async def workflow(what: str) -> str:
        text = await draft(what)
        return f"{text}: {interrupt('good?')}"

    await workflow.ainvoke("this", CONFIG)
    assert is_interrupted(newest(saver))
    await workflow.ainvoke(Command(resume="yes"), CONFIG)
    assert not is_interrupted(newest(saver))


async def test_mark_of_failure_releases_a_run_that_died_but_no_question() -> None:
    saver = InMemorySaver()
    graph = GRAPHS["counting_chain"].builder().compile(checkpointer=saver, interrupt_before=["second"])
    await graph.ainvoke({"question": "why"}, CONFIG)
    died = newest(saver)
    assert is_interrupted(died)
    failed: Any = {**died.metadata, "thread_status": "failed"}
    completed: Any = {**died.metadata, "thread_status": "completed"}
    assert not is_interrupted(died._replace(metadata=failed))
    assert is_interrupted(died._replace(metadata=completed))
    asking = died._replace(metadata=failed, pending_writes=[("task", "__interrupt__", ["?"])])
    assert is_interrupted(asking)


async def test_second_look_keeps_what_has_gone_on_or_has_no_root() -> None:
    saver = InMemorySaver()
    await GRAPHS["counting_chain"].builder().compile(checkpointer=saver).ainvoke({"question": "why"}, CONFIG)
    found = newest(saver)
    listed = replace(head(100), checkpoint_id=found.checkpoint["id"])
    assert isinstance(decide_again(listed, found, ThreadState(), POLICY, NOW), Delete)
    assert decide_again(listed, None, ThreadState(), POLICY, NOW) == Keep("it has no checkpoint of its root graph")
    assert isinstance(decide_again(head(100), found, ThreadState(), POLICY, NOW), Keep)
    completed: Any = {**found.metadata, "thread_status": "completed"}
    assert status_of(completed) == "completed"
    kept = decide_again(
        replace(listed, updated_at=NOW - timedelta(days=8)),
        found._replace(metadata=completed),
        ThreadState(),
        POLICY,
        NOW,
    )
    assert kept == Keep("completed, and used in the last 30 days")
