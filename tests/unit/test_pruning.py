"""What goes and what stays of a thread; real graphs on real databases are in tests/faults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enhanced_checkpointing.backends.pruning import (
    ANY,
    Held,
    Link,
    PruningPlan,
    check_strategy,
    link_of,
    plan_pruning,
    plan_removal,
)

CHANNELS = ("log", "notes")


@dataclass(frozen=True)
class Node:
    """A checkpoint of the model: which delta channels were ever written when it was made, and hold a value with it."""

    parent: int | None
    known: frozenset[str]
    valued: frozenset[str]


@st.composite
def trees(draw: st.DrawFn) -> list[Node]:
    """Checkpoints in the order of their ids, each the child of an earlier one: threads with forks."""
    nodes: list[Node] = []
    for number in range(draw(st.integers(1, 12))):
        parent = draw(st.integers(max(0, number - 3), number - 1)) if number else None
        known = nodes[parent].known if parent is not None else frozenset()
        known |= draw(st.frozensets(st.sampled_from(CHANNELS)))
        valued = draw(st.frozensets(st.sampled_from(sorted(known)), max_size=1)) if known else frozenset()
        nodes.append(Node(parent, known, valued))
    return nodes


def name(number: int | None) -> str:
    return f"{number:04}"


def links_of(nodes: Sequence[Node]) -> list[Link]:
    """As LangGraph says it: each checkpoint names the delta channels that it holds no value of."""
    return [
        Link(name(number), name(node.parent) if node.parent is not None else None, node.known - node.valued)
        for number, node in enumerate(nodes)
    ]


def rebuilt_from(parents: Mapping[str, str | None], nodes: Sequence[Node], checkpoint_id: str) -> dict[str, list[str]]:
    """The checkpoints whose writes each delta channel of one is rebuilt from: as a saver's history walks them."""
    node = nodes[int(checkpoint_id)]
    found: dict[str, list[str]] = {}
    for channel in node.known - node.valued:
        above, found[channel] = parents.get(checkpoint_id), []
        while above is not None and above in parents:
            if channel in nodes[int(above)].known:  # nothing was written to it before
                found[channel].append(above)
            if channel in nodes[int(above)].valued:
                break
            above = parents[above]
    return found


def left(nodes: Sequence[Node], plan: PruningPlan) -> dict[str, str | None]:
    """What is there after the plan, each with its parent."""
    before = {link.checkpoint_id: link.parent_id for link in links_of(nodes)}
    return {
        checkpoint_id: plan.parents.get(("", checkpoint_id), parent)
        for checkpoint_id, parent in before.items()
        if ("", checkpoint_id) not in plan.dropped
    }


def held_by(nodes: Sequence[Node]) -> Any:
    return lambda _, checkpoint_id, channels: Held(
        nodes[int(checkpoint_id)].known & channels, nodes[int(checkpoint_id)].valued & channels
    )


def check_readable(nodes: Sequence[Node], plan: PruningPlan, asked_to_stay: set[str]) -> None:
    before = {link.checkpoint_id: link.parent_id for link in links_of(nodes)}
    after = left(nodes, plan)
    assert asked_to_stay <= after.keys()
    for checkpoint_id in asked_to_stay:
        assert rebuilt_from(after, nodes, checkpoint_id) == rebuilt_from(before, nodes, checkpoint_id)
    for parent in after.values():
        assert parent is None or parent in after


@given(trees(), st.integers(1, 4))
def test_pruned_thread_keeps_its_newest_and_all_that_these_are_rebuilt_from(nodes: list[Node], keep: int) -> None:
    plan = plan_pruning({"": links_of(nodes)}, held_by(nodes), keep)
    check_readable(nodes, plan, {name(number) for number in range(len(nodes))[-keep:]})


@given(trees(), st.sets(st.integers(0, 11)))
def test_whatever_is_removed_every_other_checkpoint_is_rebuilt_as_before(nodes: list[Node], doomed: set[int]) -> None:
    gone = {("", name(number)) for number in doomed if number < len(nodes)}
    plan = plan_removal({"": links_of(nodes)}, gone, held_by(nodes))
    assert plan.dropped <= gone
    check_readable(nodes, plan, {name(number) for number in range(len(nodes))} - {name(number) for number in doomed})


def never(*_: Any) -> Held:
    raise AssertionError("a thread without delta channels must not be read")


def chain(*ids: str) -> list[Link]:
    return [Link(one, before) for one, before in zip(ids, (None, *ids), strict=False)]


def test_thread_without_delta_channels_keeps_its_newest_alone_and_no_value_is_looked_at() -> None:
    plan = plan_pruning({"": chain("1", "2", "3")}, never)
    assert plan.dropped == {("", "1"), ("", "2")}
    assert plan.parents == {("", "3"): None}


def test_removed_link_of_a_chain_is_bridged() -> None:
    plan = plan_removal({"": chain("1", "2", "3", "4")}, {("", "2"), ("", "3")}, never)
    assert plan.parents == {("", "4"): "1"}


def test_chain_of_channels_that_nobody_names_is_kept_whole() -> None:
    links = [Link(one, before, frozenset({ANY})) for one, before in (("1", None), ("2", "1"), ("3", "2"))]
    assert plan_pruning({"": links}, never).dropped == set()


def test_old_checkpoint_keeps_the_parent_that_it_is_read_with() -> None:
    links = [Link("1", None), Link("2", "1"), Link("3", "2", needs_parent=True)]
    assert plan_pruning({"": links}, never).dropped == {("", "1")}


@pytest.mark.parametrize("parent", ["2", "3", "missing"])
def test_parents_that_go_round_or_lead_nowhere_end_the_walk(parent: str) -> None:
    links = [Link("1", None), Link("2", "3", frozenset({"log"})), Link("3", parent, frozenset({"log"}))]
    held = Held(frozenset({"log"}), frozenset())
    plan = plan_pruning({"": links}, lambda *_: held)
    assert ("", "3") not in plan.dropped
    assert plan.dropped == ({("", "1")} if parent == "2" else {("", "1"), ("", "2")})


def test_call_of_a_subgraph_goes_with_the_checkpoint_that_it_began_at() -> None:
    thread = {
        "": chain("1", "2", "3"),
        "worker:task-1": [Link("1a", None, root="1"), Link("1b", "1a", root="1")],
        "worker:task-1|tool:task-2": [Link("1c", None, root="1")],
        "worker:task-3": [Link("3a", None, root="3"), Link("3b", "3a", root="3")],
        "worker:task-4": [Link("9a", None, root="9")],
        "notebook": [Link("1d", None, root="1"), Link("1e", "1d", root="1")],
    }
    plan = plan_pruning(thread, never)
    assert plan.dropped == {
        ("", "1"),
        ("", "2"),
        ("worker:task-1", "1a"),
        ("worker:task-1", "1b"),
        ("worker:task-1|tool:task-2", "1c"),
        ("worker:task-3", "3a"),
        ("notebook", "1d"),
    }
    assert plan.by_namespace()["worker:task-1"] == ["1a", "1b"]
    assert plan.parents == {("", "3"): None, ("worker:task-3", "3b"): None, ("notebook", "1e"): None}


@pytest.mark.parametrize(
    ("metadata", "deltas", "root"),
    [
        ({}, frozenset(), None),
        ({"counters_since_delta_snapshot": {"log": [1, 2], "notes": [0, 1]}}, frozenset({"log", "notes"}), None),
        ({"counters_since_delta_snapshot": None, "parents": None}, frozenset(), None),
        ({"delta_writes_versioned": True, "parents": {"": "1"}}, frozenset({ANY}), "1"),
        ({"parents": {"": 7}, "counters_since_delta_snapshot": ["log"]}, frozenset(), None),
    ],
)
def test_metadata_of_any_shape_makes_a_link(metadata: Any, deltas: frozenset[str], root: str | None) -> None:
    assert link_of("2", "1", metadata) == Link("2", "1", deltas, root)


def test_strategies_are_two_and_threads_are_many() -> None:
    check_strategy(["a"], "keep_latest")
    check_strategy(["a"], "delete")
    with pytest.raises(ValueError, match="keep_latest"):
        check_strategy(["a"], "newest")
    with pytest.raises(TypeError):
        check_strategy("a", "delete")
