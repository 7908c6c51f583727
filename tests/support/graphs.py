"""Deterministic graphs of every kind: two runs of one store the same, but for ids and times."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias, TypedDict

import langgraph.channels
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, Send, interrupt

Builder: TypeAlias = "StateGraph[Any, Any, Any, Any]"
Durability: TypeAlias = Literal["sync", "async", "exit"]
Update: TypeAlias = dict[str, Any]

on_node: ContextVar[Callable[[str], Awaitable[None] | None] | None] = ContextVar("on_node", default=None)
"""Called with a node's name before the node works; set it to make a fault in mid-run. Awaited in asynchronous runs."""


class Log(TypedDict, total=False):
    """The state of most graphs: a log that only grows."""

    log: Annotated[list[str], operator.add]
    question: str


class Delegated(Log, total=False):
    """With what a subgraph reports; all other channels of subgraphs are their own."""

    summary: str


class Notes(TypedDict, total=False):
    """A subgraph's state; shares the question and the summary with the graph around it."""

    notes: Annotated[list[str], operator.add]
    question: str
    summary: str


class Findings(TypedDict, total=False):
    """The state of a subgraph's subgraph."""

    findings: Annotated[list[str], operator.add]
    question: str
    summary: str


class Profiled(Log, total=False):
    """With a channel that is written once."""

    profile: list[str]


def extend(log: list[str], writes: Sequence[list[str]]) -> list[str]:
    """The delta channel's reducer: all entries of all writes, in order."""
    return [*log, *(entry for write in writes for entry in write)]


class DeltaLog(TypedDict, total=False):
    """The log as a delta channel; its annotation is only looked at where a graph is built of it."""

    log: Annotated[list[str], langgraph.channels.DeltaChannel(extend, list, snapshot_frequency=3)]
    question: str


class Item(TypedDict):
    """What one worker of the map gets."""

    item: int


@dataclass(frozen=True)
class GraphCase:
    """A graph and what is said to it, turn by turn, in one thread."""

    name: str
    builder: Callable[[], Builder]
    turns: tuple[Any, ...]

    @property
    def resumes(self) -> bool:
        """Whether a turn answers an interrupt."""
        return any(isinstance(turn, Command) for turn in self.turns)


async def run_case(
    case: GraphCase,
    checkpointer: BaseCheckpointSaver[Any],
    thread_id: str,
    *,
    durability: Durability = "sync",
    between: Callable[[int], Awaitable[None]] | None = None,
) -> dict[str, Any]:
    """Run all turns, await `between` with the number (from 0) of each turn before it, and return the state's values."""
    graph = case.builder().compile(checkpointer=checkpointer)
    config: RunnableConfig = {"configurable": {"thread_id": thread_id}}
    for number, turn in enumerate(case.turns):
        if between is not None:
            await between(number)
        await graph.ainvoke(turn, config, durability=durability)
    return dict((await graph.aget_state(config)).values)


def run_case_sync(
    case: GraphCase,
    checkpointer: BaseCheckpointSaver[Any],
    thread_id: str,
    *,
    durability: Durability = "sync",
    between: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """The same through LangGraph's synchronous methods."""
    graph = case.builder().compile(checkpointer=checkpointer)
    config: RunnableConfig = {"configurable": {"thread_id": thread_id}}
    for number, turn in enumerate(case.turns):
        if between is not None:
            between(number)
        graph.invoke(turn, config, durability=durability)
    return dict(graph.get_state(config).values)


def node(name: str, work: Callable[[Any], Update]) -> RunnableLambda[Any, Update]:
    """A node that calls the hook `on_node` first, in synchronous and in asynchronous runs."""

    def run(state: Any) -> Update:
        if (hook := on_node.get()) is not None and inspect.isawaitable(hook(name)):
            raise TypeError("a synchronous run cannot await: set a plain function as on_node")
        return work(state)

    async def run_async(state: Any) -> Update:
        if (hook := on_node.get()) is not None and (pending := hook(name)) is not None:
            await pending
        return work(state)

    return RunnableLambda(run, afunc=run_async, name=name)


def say(name: str, channel: str = "log") -> Callable[[Any], Update]:
    """Work that logs its name and what it saw."""
    return lambda state: {channel: [f"{name}: {state.get('question')} {state.get('summary')}"]}


def report(channel: str) -> Callable[[Any], Update]:
    """Work that hands what a subgraph gathered to the graph around it."""
    return lambda state: {"summary": f"{len(state[channel])} {channel}, last: {state[channel][-1]}"}


def chain(state: type, nodes: dict[str, Any]) -> Builder:
    """The nodes one after the other; functions become nodes of their name, compiled graphs stay."""
    builder: Builder = StateGraph(state)
    for name, work in nodes.items():
        builder.add_node(name, work if hasattr(work, "invoke") else node(name, work))
    for before, after in zip((START, *nodes), (*nodes, END), strict=True):
        builder.add_edge(before, after)
    return builder


def counting_chain() -> Builder:
    """Three nodes in a row."""
    return chain(Log, {name: say(name) for name in ("first", "second", "third")})


def unchanged_channel() -> Builder:
    """`profile` comes with the first turn and never changes again; every later step needs it."""

    def greet(state: Profiled) -> Update:
        return {"log": [f"{', '.join(state['profile'])} asked {state['question']}"]}

    return chain(Profiled, {"greet": greet, "think": greet, "answer": greet})


def parallel() -> Builder:
    """Three branches at once, and a node that waits for all."""
    builder: Builder = StateGraph(Log)
    branches = ["left", "middle", "right"]
    for name in ("split", *branches, "join"):
        builder.add_node(name, node(name, say(name)))
    builder.add_edge(START, "split")
    for name in branches:
        builder.add_edge("split", name)
    builder.add_edge(branches, "join")
    builder.add_edge("join", END)
    return builder


def send_map() -> Builder:
    """As many workers as `Send` makes, and a reducer that gathers what they did."""

    def work(state: Item) -> Update:
        return {"log": [f"worked on {state['item']}"]}

    def dispatch(state: Log) -> Sequence[Send]:
        return [Send("work", {"item": number}) for number in range(len(state.get("question", "")))]

    builder: Builder = StateGraph(Log)
    builder.add_node("plan", node("plan", say("plan")))
    builder.add_node("work", node("work", work))
    builder.add_node("collect", node("collect", say("collect")))
    builder.add_edge(START, "plan")
    builder.add_conditional_edges("plan", dispatch, ["work"])
    builder.add_edge("work", "collect")
    builder.add_edge("collect", END)
    return builder


def subgraph() -> Builder:
    """A supervisor that delegates to a worker, itself a graph with a graph in it: namespaces of depth one and two."""
    tool = chain(Findings, {"look_up": say("look_up", "findings"), "check": report("findings")}).compile()
    worker = chain(Notes, {"read": say("read", "notes"), "tool": tool, "write": report("notes")}).compile()
    return chain(Delegated, {"supervisor": say("supervisor"), "worker": worker, "review": say("review")})


def stateful_subgraph() -> Builder:
    """A subgraph with a memory of its own that lasts over the turns (`checkpointer=True`): its count of notes grows."""
    steps = {"note": say("note", "notes"), "count": report("notes")}
    notebook = chain(Notes, steps).compile(checkpointer=True)
    return chain(Delegated, {"listen": say("listen"), "notebook": notebook, "reply": say("reply")})


def interrupting() -> Builder:
    """Two questions to a human, each answered in a turn of its own."""

    def ask(what: str) -> Callable[[Log], Update]:
        return lambda state: {"log": [f"{what}: " + interrupt(f"{what} {state['question']}?")]}

    return chain(
        Log, {"draft": say("draft"), "approve": ask("approve"), "edit": say("edit"), "publish": ask("publish")}
    )


def delta_channel() -> Builder:
    """A channel that is stored as its writes, with a whole value at every third."""

    return chain(DeltaLog, {name: say(name) for name in ("first", "second", "third")})


_QUESTIONS = ({"question": "why"}, {"question": "what"}, {"question": "when"})

GRAPHS: dict[str, GraphCase] = {
    case.name: case
    for case in (
        GraphCase("counting_chain", counting_chain, _QUESTIONS),
        GraphCase(
            "unchanged_channel", unchanged_channel, ({**_QUESTIONS[0], "profile": ["Ada", "Grace"]}, *_QUESTIONS[1:])
        ),
        GraphCase("parallel", parallel, _QUESTIONS),
        GraphCase("send_map", send_map, _QUESTIONS),
        GraphCase("subgraph", subgraph, _QUESTIONS[:2]),
        GraphCase("stateful_subgraph", stateful_subgraph, _QUESTIONS),
        GraphCase(
            "interrupting",
            interrupting,
            (_QUESTIONS[0], Command(resume="yes"), Command(resume="now"), _QUESTIONS[1], Command(resume="no")),
        ),
        GraphCase("delta_channel", delta_channel, _QUESTIONS),
    )
    if case.name != "delta_channel" or hasattr(langgraph.channels, "DeltaChannel")
}
"""Every case by its name; without `delta_channel` where the installed LangGraph has no such channel."""
