"""What a config says of the call of a subgraph."""

from __future__ import annotations

import pytest
from langchain_core.runnables import RunnableConfig

from enhanced_checkpointing.standby.thread import SubgraphCall, call_of


def asked(checkpoint_ns: str, steps: dict[str, str] | None, running: str | None = None) -> RunnableConfig:
    configurable: dict[str, object] = {"thread_id": "a", "checkpoint_ns": checkpoint_ns}
    configurable |= {"checkpoint_map": steps} if steps is not None else {}
    return {"configurable": configurable | ({"__pregel_task_id": running} if running is not None else {})}


@pytest.mark.parametrize(
    ("config", "call"),
    [
        (asked("planner:4a", {"": "P"}), SubgraphCall("", "P", frozenset({"P"}), running=False)),
        (asked("planner:4a", {"": "P"}, "4a"), SubgraphCall("", "P", frozenset({"P"}), running=True)),
        (asked("planner:4a", {"": "P"}, "9c"), SubgraphCall("", "P", frozenset({"P"}), running=False)),
        (asked("planner:4a|2", {"": "P"}), SubgraphCall("", "P", frozenset({"P"}), running=False)),
        (
            asked("planner:4a|search:9c", {"": "P", "planner:4a": "S"}),
            SubgraphCall("planner:4a", "S", frozenset({"S", "P"}), running=False),
        ),
        (
            asked("planner:4a|1|search:9c", {"": "P", "planner:4a|1": "S"}),
            SubgraphCall("planner:4a|1", "S", frozenset({"S", "P"}), running=False),
        ),
        (  # a task of the functional API that a node calls
            asked("planner:4a|call:9c", {"": "P", "planner:4a": "P"}),
            SubgraphCall("", "P", frozenset({"P"}), running=False),
        ),
        (
            asked("planner:4a|search:9c", {"planner:4a": "S"}),
            SubgraphCall("planner:4a", "S", frozenset({"S"}), False),
        ),
    ],
)
def test_call_of_a_subgraph_is_told_by_the_task_that_made_it(config: RunnableConfig, call: SubgraphCall) -> None:
    assert call_of(config) == call


@pytest.mark.parametrize(
    "config",
    [
        asked("", {"": "P"}),
        asked("planner", {"": "P"}),
        asked("1", {"": "P"}),
        asked("planner|2", {"": "P"}),
        asked("planner:4a", {}),
        asked("planner:4a", None),
        asked("planner:4a|search:9c", {"": "P"}),
    ],
)
def test_namespace_that_is_no_call_or_of_no_step_that_is_named_is_none(config: RunnableConfig) -> None:
    assert call_of(config) is None
