"""Which step of which graph has called a subgraph, as LangGraph tells it in a config. Pure: no I/O."""

from __future__ import annotations

from dataclasses import dataclass

from langchain_core.runnables import RunnableConfig

from enhanced_checkpointing.operations import namespace_of

RUNNING_TASK = "__pregel_task_id"
"""Where LangGraph names the task that runs right now in this process, in the config of what the task calls."""


@dataclass(frozen=True, slots=True)
class SubgraphCall:
    """One call of a subgraph, by a step of the graph in the namespace `caller_ns`: its checkpoint `caller_id`.

    `steps` are the checkpoints of that step and of those that called its graph. `running`: the calling task asks by
    itself.
    """

    caller_ns: str
    caller_id: str
    steps: frozenset[str]
    running: bool


def call_of(config: RunnableConfig) -> SubgraphCall | None:
    """The call that a namespace is for; None where it is not that of one call, or its step is not named."""
    configurable = config["configurable"]
    steps = configurable.get("checkpoint_map") or {}
    caller_ns, task_id = _caller(namespace_of(config))
    caller_id = steps.get(caller_ns)
    if task_id is None or caller_id is None:
        return None
    running = configurable.get(RUNNING_TASK) == task_id
    of_calls = {caller_id}
    above = caller_ns
    while task_id is not None:
        if above in steps:
            of_calls.add(steps[above])
        above, task_id = _caller(above)
    while caller_ns and steps.get(above := _caller(caller_ns)[0]) == caller_id:
        caller_ns = above  # a task of the functional API has its graph's step, under a namespace of its own
    return SubgraphCall(caller_ns, caller_id, frozenset(of_calls), running)


def _caller(checkpoint_ns: str) -> tuple[str, str | None]:
    """The namespace of the graph whose task called a subgraph, and the task's id; None where a namespace is not that of
    one call.

    LangGraph ends such a namespace in the name and the id of the task, with a colon between them, and from the task's
    second subgraph on in a number more: `planner:4ab3|search:9cd1|1`.
    """
    *above, call = checkpoint_ns.split("|")
    while call.isdigit() and above:
        call = above.pop()
    _, colon, task_id = call.rpartition(":")
    return "|".join(above), task_id if colon else None
