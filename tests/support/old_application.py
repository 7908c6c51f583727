"""An application as it was run under old releases of LangGraph, and is run under today's: its classes and its graph.

`make_old_releases` has old releases run it; what they stored is read by the tests. Only what all of these releases
have is used here, and the classes must keep their names: they stand in what is stored.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from typing import Annotated, Any

from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from pydantic import BaseModel
from typing_extensions import TypedDict

try:
    from langgraph.types import Send
except ImportError:  # the oldest release has it elsewhere
    from langgraph.constants import Send  # type: ignore[no-redef]  # it is the same class

ENDED, WAITING = "ended", "waiting"
"""A thread that ran to its end, and one with Sends that are pending."""


class Profile(BaseModel):
    name: str
    age: int


@dataclass
class Point:
    x: int
    y: int


class Colour(Enum):
    RED = "red"


class State(TypedDict, total=False):
    messages: Annotated[list[Any], add_messages]
    note: Any
    raw: Any
    buffer: Any
    when: Any
    profile: Any
    point: Any
    colour: Any
    count: Any
    results: Annotated[list[Any], operator.add]


def plan(state: State) -> dict[str, Any]:
    return {
        "messages": [AIMessage("planned", id="2")],
        "note": None,
        "raw": b"\x00raw",
        "buffer": bytearray(b"buffer"),
        "when": datetime(2024, 8, 1, 12, 30, tzinfo=timezone.utc),  # noqa: UP017  # Python 3.10 has no `UTC`
        "profile": Profile(name="Ada", age=36),
        "point": Point(1, 2),
        "colour": Colour.RED,
        "count": 3,
    }


def to_work(state: State) -> list[Send]:
    return [Send("work", {"part": part, "profile": Profile(name="Ada", age=part)}) for part in (1, 2)]


def work(task: Any) -> dict[str, Any]:
    return {"results": [(task["part"], task["profile"].age)]}


def builder() -> StateGraph[Any, Any, Any, Any]:
    graph: StateGraph[Any, Any, Any, Any] = StateGraph(State)
    graph.add_node("plan", plan)
    graph.add_node("work", work)  # type: ignore[arg-type]  # what is sent to it is no State
    graph.add_edge(START, "plan")
    graph.add_conditional_edges("plan", to_work, ["work"])
    graph.add_edge("work", END)
    return graph


def config_of(thread_id: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread_id}}


def run(saver: Any) -> None:
    """Leave both threads in a saver."""
    question = {"messages": [HumanMessage("question", id="1")]}
    builder().compile(checkpointer=saver).invoke(question, config_of(ENDED))
    builder().compile(checkpointer=saver, interrupt_before=["work"]).invoke(question, config_of(WAITING))
