"""One conversation of the demo, on whichever saver: its twin without faults, and those that meet the faults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver

from enhanced_checkpointing.cli.demo.proof import Stored, plain_messages, read_stored
from enhanced_checkpointing.cli.demo.record import Conversation, Record
from enhanced_checkpointing.cli.demo.team import Script, TeamModel, build_team
from enhanced_checkpointing.errors import redact

__all__ = ["Twin", "converse", "plant_difference", "run_twin"]


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
