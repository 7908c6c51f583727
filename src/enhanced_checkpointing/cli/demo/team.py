"""The demo's agents, and their conversations on any saver."""

from __future__ import annotations

import asyncio
import hashlib
import operator
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias, TypedDict

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages

from enhanced_checkpointing.cli.demo.record import Conversation, Record, Stored, plain_messages, read_stored
from enhanced_checkpointing.errors import redact

Team: TypeAlias = "StateGraph[Any, Any, Any, Any]"
Update: TypeAlias = dict[str, Any]

WORKERS = ("researcher", "analyst", "writer")
_SUPERVISOR = "supervisor"

_SUBJECTS = ("late parcel", "refund", "tax report", "trip to Oslo", "server move", "hiring plan", "tender", "audit")
_QUESTIONS = ("What do we know?", "What does it cost?", "Who has to agree?", "What can go wrong?", "What is next?")
_FINDINGS = ("two sources agree", "the figures add up", "one date is open", "the contract allows it", "it is urgent")


class TeamState(TypedDict, total=False):
    """`case` comes with the first message and never changes again, but every later step needs it."""

    messages: Annotated[list[AnyMessage], add_messages]
    case: str


class WorkerState(TeamState, total=False):
    """A worker's own notes are not the team's."""

    notes: Annotated[list[str], operator.add]


@dataclass(frozen=True)
class Script:
    """What the user of one conversation says; `turns` are the inputs of the graph, one after the other."""

    title: str
    seed: int
    turns: tuple[Update, ...]


def write_script(seed: int, number: int, turns: int) -> Script:
    """The user's part of conversation `number`, the same for the same `seed`."""
    subject = _SUBJECTS[(seed + number) % len(_SUBJECTS)]
    chance = random.Random(f"{seed}/{number}")
    said: list[Update] = [
        {"messages": [HumanMessage(f"{chance.choice(_QUESTIONS)} ({subject})", id=f"turn-{turn}")]}
        for turn in range(turns)
    ]
    said[0]["case"] = f"{subject}, case {chance.randrange(1000, 10_000)}"
    return Script(subject, seed, tuple(said))


class TeamModel(BaseChatModel):
    """A chat model that thinks for about `pace` seconds and answers from a hash of what it sees."""

    seed: int
    pace: float = 0.0
    on_call: Callable[[], None] = lambda: None
    """Called after every answer."""

    @property
    def _llm_type(self) -> str:
        return "deterministic-team"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage(_answer(self.seed, messages)))])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        if self.pace:
            # From a hash as well: each conversation has its own rhythm, so that faults meet them at different steps.
            await asyncio.sleep(self.pace * (0.6 + 0.8 * _digest(self.seed, messages) % 1000 / 1000))
        result = self._generate(messages)
        self.on_call()
        return result


def build_team(model: TeamModel) -> Team:
    """The supervisor hands the turn to two or three workers, one after the other, and then answers."""

    async def supervise(state: TeamState) -> Update:
        return await _say(model, _SUPERVISOR, state["messages"], state["case"])

    def delegate(state: TeamState) -> str:
        command, _, worker = state["messages"][-1].text.partition(" ")
        return worker if command == "delegate" else END

    team: Team = StateGraph(TeamState)
    team.add_node(_SUPERVISOR, supervise)
    team.add_edge(START, _SUPERVISOR)
    for worker in WORKERS:
        team.add_node(worker, _build_worker(worker, model).compile())
        team.add_edge(worker, _SUPERVISOR)
    team.add_conditional_edges(_SUPERVISOR, delegate, [*WORKERS, END])
    return team


def _build_worker(name: str, model: TeamModel) -> Team:
    async def look(state: WorkerState) -> Update:
        spoken = await _say(model, name, state["messages"], state["case"])
        return {"notes": [str(spoken["messages"][0].text)]}

    async def report(state: WorkerState) -> Update:
        return await _say(model, name, state["messages"], f"{state['case']}; notes: {'; '.join(state['notes'])}")

    worker: Team = StateGraph(WorkerState)
    worker.add_node("look", look)
    worker.add_node("report", report)
    worker.add_edge(START, "look")
    worker.add_edge("look", "report")
    worker.add_edge("report", END)
    return worker


async def _say(model: TeamModel, name: str, messages: Sequence[BaseMessage], brief: str) -> Update:
    answer = await model.ainvoke([SystemMessage(brief, name=name), *messages])
    return {"messages": [AIMessage(str(answer.text), name=name, id=f"message-{len(messages)}")]}


def _answer(seed: int, messages: Sequence[BaseMessage]) -> str:
    role, digest = messages[0].name, _digest(seed, messages)
    if role != _SUPERVISOR:
        return f"{_FINDINGS[digest % len(_FINDINGS)]} [{digest:08x}, {len(messages)} messages]"
    start = max(index for index, message in enumerate(messages) if isinstance(message, HumanMessage))
    asked = [message.name for message in messages[start:] if message.name in WORKERS]
    free = [worker for worker in WORKERS if worker not in asked]
    if len(asked) < 2 + _digest(seed, messages[: start + 1]) % 2:
        return f"delegate {free[digest % len(free)]}"
    return f"answer: {len(asked)} reports on {messages[0].text} [{digest:08x}]"


def _digest(seed: int, messages: Sequence[BaseMessage]) -> int:
    seen = "\n".join(f"{message.type} {message.name} {message.text}" for message in messages)
    return int.from_bytes(hashlib.sha256(f"{seed}\n{seen}".encode()).digest()[:4])


@dataclass(frozen=True)
class Twin:
    """The same conversation where nothing fails: how often the model answered, and what was stored."""

    calls: int
    stored: Stored


async def run_twin(script: Script) -> Twin:
    """Run a conversation in memory, as fast as it goes."""
    saver, conversation = InMemorySaver(), Conversation("twin", script.title, len(script.turns), expected_calls=0)
    await _say_everything(script, saver, {"configurable": {"thread_id": "twin"}}, conversation, pace=0.0)
    return Twin(conversation.calls, await read_stored(saver, "twin"))


async def converse(
    script: Script,
    saver: BaseCheckpointSaver[Any],
    config: RunnableConfig,
    conversation: Conversation,
    record: Record,
    pace: float,
) -> tuple[str, ...]:
    """Run one conversation to its end or its loss; returns its last messages, none when it was lost."""
    try:
        return await _say_everything(script, saver, config, conversation, pace)
    except Exception as error:  # noqa: BLE001  # whatever ends a conversation is what the demo is there to show
        reason = next(iter(redact(error).splitlines()), "no reason given")
        conversation.error = f"{type(error).__name__}: {reason}"
        record.tell("lost", f"{conversation.name} lost in turn {conversation.turn}: {conversation.error}")
        return ()


async def plant_difference(script: Script, saver: BaseCheckpointSaver[Any], thread_id: str) -> None:
    """Change one stored message, so that the comparison has something to find."""
    team = build_team(TeamModel(seed=script.seed)).compile(checkpointer=saver)
    change = {"messages": [AIMessage("this was never said", name="supervisor", id="message-1")]}
    await team.aupdate_state({"configurable": {"thread_id": thread_id}}, change, as_node="supervisor")


async def _say_everything(
    script: Script,
    saver: BaseCheckpointSaver[Any],
    config: RunnableConfig,
    conversation: Conversation,
    pace: float,
) -> tuple[str, ...]:
    model = TeamModel(seed=script.seed, pace=pace, on_call=conversation.count_call)
    team = build_team(model).compile(checkpointer=saver)
    state: dict[str, Any] = {}
    for said in script.turns:
        conversation.turn += 1
        state = await team.ainvoke(said, config)
    conversation.finished = True
    return plain_messages(state["messages"])
