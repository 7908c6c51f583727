"""A team that asks before it acts, in threads that went different ways: what `checkpointing threads` shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import Command, interrupt

from tests.support.graphs import GRAPHS, run_case
from tests.support.threads import Saver

QUESTION = "Shall I send the order?"


@dataclass
class Order:
    """A class of the application, which no command of ours may import."""

    number: int
    item: str


class State(TypedDict, total=False):
    """What the team knows."""

    messages: Annotated[list[AnyMessage], add_messages]
    order: Any
    answer: str


def agent(state: State) -> dict[str, Any]:
    """Look at the weather first, then take an order."""
    if isinstance(state["messages"][-1], ToolMessage):
        return {"messages": [AIMessage("It is sunny.\nTake a hat.")], "order": Order(7, "hat")}
    call = {"name": "get_weather", "args": {"city": "Paris"}, "id": "call-1"}
    return {"messages": [AIMessage("Let me look.", tool_calls=[call])]}


def tools(state: State) -> dict[str, Any]:
    """The weather, with what a terminal would obey."""
    return {"messages": [ToolMessage("22 °C \x1b[31m", tool_call_id="call-1", name="get_weather")]}


def approve(state: State) -> dict[str, Any]:
    """Ask somebody."""
    return {"answer": interrupt({"question": QUESTION, "order": state["order"]})}


def fail(state: State) -> dict[str, Any]:
    """The step after the answer never works."""
    raise ValueError("the mail server said no")


def team() -> StateGraph[Any, Any, Any, Any]:
    """Agent, tools, agent, a question to a human, and a step that fails."""
    builder: StateGraph[Any, Any, Any, Any] = StateGraph(State)
    for node in (agent, tools, approve, fail):
        builder.add_node(node.__name__, node)
    builder.add_edge(START, "agent")
    builder.add_conditional_edges("agent", lambda state: "approve" if state.get("order") else "tools")
    builder.add_edge("tools", "agent")
    builder.add_edge("approve", "fail")
    builder.add_edge("fail", END)
    return builder


def config_of(thread_id: str, **metadata: Any) -> RunnableConfig:
    return {"configurable": {"thread_id": thread_id}, "metadata": metadata}


async def converse(saver: Saver) -> None:
    """Make the threads: `waiting` for an answer, `forked` and `broken` after one, and graphs of other kinds."""
    graph = team().compile(checkpointer=saver)
    start = {"messages": [SystemMessage("Be kind."), HumanMessage("What is the weather in Paris?")]}
    await graph.ainvoke(start, config_of("waiting", user_id="alice", tenant=7))
    for thread_id in ("broken", "forked"):
        config = config_of(thread_id, user_id="bob")
        await graph.ainvoke(start, config)
        try:
            await graph.ainvoke(Command(resume="yes"), config)
        except ValueError:
            continue
    states = [state async for state in graph.aget_state_history(config_of("forked"))]
    before_tools = next(state for state in states if state.next == ("tools",))
    rain = [ToolMessage("Rain.", tool_call_id="call-1", name="get_weather", status="error")]
    branch = await graph.aupdate_state(before_tools.config, {"messages": rain}, as_node="tools")
    await graph.ainvoke(None, branch)
    for name in ("subgraph", *(["delta_channel"] if "delta_channel" in GRAPHS else [])):
        await run_case(GRAPHS[name], saver, name)
