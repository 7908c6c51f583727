"""One checkpoint as an operator looks at it: its state, its messages, what comes next, and what it waits for. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from langgraph.checkpoint.base import CheckpointTuple

from enhanced_checkpointing.backends.listing import time_of
from enhanced_checkpointing.cli.output import clean
from enhanced_checkpointing.cli.values import Described, Unreadable, as_json, shown, unwrapped
from enhanced_checkpointing.operations import checkpoint_id_of, namespace_of

ROLES = {
    "human": "human",
    "user": "human",
    "HumanMessageChunk": "human",
    "ai": "ai",
    "assistant": "ai",
    "AIMessageChunk": "ai",
    "tool": "tool",
    "function": "tool",
    "ToolMessageChunk": "tool",
    "system": "system",
    "developer": "system",
    "SystemMessageChunk": "system",
    "remove": "remove",
}
"""What LangChain and the makers of models call those who speak, and what they are called here."""

REMOVE_ALL = "__remove_all__"
"""The id with which LangGraph removes every message before it."""

TOLD_ELSEWHERE = ("tool_use", "tool_call", "function_call")
"""Parts of a message's content that its tool calls say again."""


@dataclass(frozen=True, slots=True)
class Call:
    """A tool that a message wants to be called."""

    name: str
    arguments: Any
    call_id: str | None = None

    @property
    def text(self) -> str:
        """As it would be written in Python."""
        if isinstance(self.arguments, dict):
            written = (f"{key}={shown([part])[1:-1]}" for key, part in self.arguments.items())
            return f"{self.name}({', '.join(written)})"
        return f"{self.name}({shown(self.arguments)})"


@dataclass(frozen=True, slots=True)
class Message:
    """One message; `text` may have several lines. `role` is human, ai, tool, system, or whatever it is stored as."""

    role: str
    text: str
    name: str | None = None
    message_id: str | None = None
    calls: tuple[Call, ...] = ()
    failed: bool = False
    """Whether it is the answer of a tool that says that it failed."""

    def as_json(self) -> dict[str, Any]:
        """The message in plain JSON types, without what it does not have."""
        found: dict[str, Any] = {"role": self.role, "text": self.text, "name": self.name, "id": self.message_id}
        if self.calls:
            found["tool_calls"] = [
                {"name": call.name, "arguments": as_json(call.arguments), "id": call.call_id} for call in self.calls
            ]
        if self.failed:
            found["failed"] = True
        return {key: part for key, part in found.items() if part is not None}


def message_of(value: Any) -> Message | None:
    """The message that a value is; None if it is none."""
    if isinstance(value, Described):
        content = value.content
        of_langchain = value.module.startswith("langchain_core.messages") or value.name.endswith("Message")
        return _message(content, content.get("type")) if of_langchain and _has_content(content) else None
    if _has_content(value) and isinstance(value.get("role", value.get("type")), str):
        role = value.get("role", value.get("type"))
        return _message(value, role) if role in ROLES else None
    return None


def conversation_of(value: Any) -> list[Message] | None:
    """The messages of a list that consists of nothing else; None for everything else, an empty list too."""
    if not isinstance(value, (list, tuple)) or not value:
        return None
    messages = [message for message in map(message_of, value) if message is not None]
    return messages if len(messages) == len(value) else None


def joined(before: Sequence[Any], more: Iterable[Any]) -> list[Any]:
    """Stored messages and what was written upon them, as LangGraph's `add_messages` joins them: by their ids."""
    found = list(before)
    for value in more:
        message = message_of(value)
        if message is None or message.message_id is None:
            found.append(value)
        elif message.role == "remove":
            every = message.message_id == REMOVE_ALL
            found = [] if every else [one for one in found if _id_of(one) != message.message_id]
        else:
            places = [place for place, one in enumerate(found) if _id_of(one) == message.message_id]
            if places:
                found[places[0]] = value
            else:
                found.append(value)
    return found


def _id_of(value: Any) -> str | None:
    message = message_of(value)
    return message.message_id if message is not None else None


def _has_content(content: Any) -> bool:
    return isinstance(content, dict) and "content" in content


def _message(content: dict[str, Any], kind: Any) -> Message:
    role = str(content.get("role") or kind) if kind == "chat" else str(kind)
    return Message(
        role=ROLES.get(role, role),
        text=clean(_text(content["content"])),
        name=_text_or_none(content.get("name")),
        message_id=_text_or_none(content.get("id")),
        calls=tuple(_calls(content)),
        failed=content.get("status") == "error",
    )


def _text_or_none(value: Any) -> str | None:
    return clean(value) if isinstance(value, str) and value else None


def _text(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)):
        return shown(content)
    return "\n".join(text for text in map(_part, content) if text)


def _part(part: Any) -> str:
    """One part of what is said: text, or the name of what it is."""
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        return shown(part)
    kind = str(part.get("type", "part"))
    if kind in TOLD_ELSEWHERE:
        return ""
    if isinstance(part.get("text"), str):
        return str(part["text"])
    for name in ("thinking", "reasoning"):
        if isinstance(part.get(name), str):
            return f"({name}) {part[name]}"
    return f"[{kind.removesuffix('_url')}]"


def _calls(content: dict[str, Any]) -> Iterable[Call]:
    for key in ("tool_calls", "invalid_tool_calls"):
        listed = content.get(key)
        for call in listed if isinstance(listed, (list, tuple)) else ():
            if isinstance(call, dict):
                yield _call(call)


def _call(call: dict[str, Any]) -> Call:
    """LangChain says name and args; those who make models put them into `function`, the arguments as JSON."""
    function = call.get("function")
    said = function if isinstance(function, dict) else call
    arguments = said.get("args", said.get("arguments", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:  # a model wrote it: shown as it is
            arguments = clean(arguments)
    return Call(clean(str(said.get("name"))), arguments, _text_or_none(call.get("id")))


BRANCH, JOIN, START, TASKS = "branch:to:", "join:", "__start__", "__pregel_tasks"
"""Names of channels with which LangGraph keeps which nodes come next."""

OUTER = ("__root__", "__end__", "__previous__")
"""Channels with the values of an application whose state has no names: of a graph, and of a function."""

INTERRUPT, ERROR, RESUME, NO_WRITES = "__interrupt__", "__error__", "__resume__", "__no_writes__"

COUNTERS = "counters_since_delta_snapshot"


@dataclass(frozen=True, slots=True)
class Write:
    """What a task has written that is not in a checkpoint yet."""

    task_id: str
    channel: str
    value: Any


@dataclass(frozen=True, slots=True)
class Interrupt:
    """A question of a task to whoever runs the graph."""

    task_id: str
    value: Any
    interrupt_id: str | None = None


@dataclass(frozen=True, slots=True)
class View:
    """A checkpoint. `channels` are those of the application, with plain values; `rebuilt_channels` are those of which
    it stores only what was written, so that their values here are put together by guess."""

    thread_id: str
    checkpoint_ns: str
    checkpoint_id: str
    parent_id: str | None
    made_at: datetime | None
    metadata: Mapping[str, Any]
    channels: Mapping[str, Any]
    next_nodes: tuple[str, ...]
    interrupts: tuple[Interrupt, ...] = ()
    errors: tuple[Write, ...] = ()
    writes: tuple[Write, ...] = ()
    rebuilt_channels: tuple[str, ...] = ()
    given: Any = None
    """The input of a run that has not begun to work on it."""
    tells_next: bool = True
    """Whether no next node means that there is none."""

    @property
    def step(self) -> int | None:
        step = self.metadata.get("step")
        return step if isinstance(step, int) else None

    @property
    def source(self) -> str:
        return str(self.metadata.get("source") or "-")


def view_of(found: CheckpointTuple, rebuilt: Mapping[str, Any] | None = None) -> View:
    """What a saver has read with a `PlainSerializer`; `rebuilt` are the values of delta channels that it lacks."""
    checkpoint = found.checkpoint
    values = {name: unwrapped(value) for name, value in checkpoint["channel_values"].items()} | dict(rebuilt or {})
    writes = [Write(*write) for write in found.pending_writes or ()]
    done = {write.task_id for write in writes if not _is_special(write.channel) or write.channel == NO_WRITES}
    asked = [write for write in writes if write.channel == INTERRUPT and write.task_id not in done]
    return View(
        thread_id=str(found.config["configurable"]["thread_id"]),
        checkpoint_ns=namespace_of(found.config),
        checkpoint_id=checkpoint["id"],
        parent_id=checkpoint_id_of(found.parent_config) if found.parent_config else None,
        made_at=time_of(checkpoint["id"], checkpoint.get("ts")),
        metadata=found.metadata,
        channels={name: value for name, value in sorted(values.items()) if not is_inner(name)},
        next_nodes=tuple(_next_nodes(checkpoint["channel_versions"], checkpoint["versions_seen"], values)),
        interrupts=tuple(interrupt for write in asked for interrupt in _interrupts(write)),
        errors=tuple(write for write in writes if write.channel == ERROR),
        writes=tuple(write for write in writes if not is_inner(write.channel)),
        rebuilt_channels=tuple(sorted(rebuilt or ())),
        given=values.get(START),
        tells_next=START in checkpoint["channel_versions"],
    )


def is_inner(channel: str) -> bool:
    """Whether a channel is LangGraph's own; what is neither a state's root nor a function's result begins with `__`."""
    return channel.startswith((BRANCH, JOIN)) or (channel[:2] == "__" and channel not in OUTER)


def delta_channels(found: CheckpointTuple) -> list[str]:
    """The delta channels of which a checkpoint does not hold the value."""
    counters: Any = found.metadata.get(COUNTERS)
    held = found.checkpoint["channel_values"]
    versions = found.checkpoint["channel_versions"]
    return sorted(name for name in counters if name in versions and name not in held) if counters else []


def rebuilt(seed: Any, writes: Iterable[Any]) -> Any:
    """The value of a delta channel, as far as it can be told without the application's reducer: messages are joined by
    their ids, lists and dicts are extended, and of everything else the last one counts."""
    value = unwrapped(seed)
    for write in writes:
        if isinstance(write, Described) and write.name == "Overwrite" and isinstance(write.content, dict):
            value = write.content.get("value")
        elif isinstance(write, (list, tuple)) and (value is None or isinstance(value, (list, tuple))):
            value = joined(value or (), write)
        elif isinstance(value, (list, tuple)) and conversation_of([write]):
            value = joined(value, [write])
        elif isinstance(value, dict) and isinstance(write, dict):
            value = {**value, **write}
        else:
            value = write
    return value


def nodes_between(before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """The nodes that ran between two checkpoints, by what each had seen of the channels; `start` takes the input."""
    ran = (node for node, seen in after.items() if seen and seen != before.get(node))
    return tuple(sorted("start" if node == START else node for node in ran if node == START or node[:2] != "__"))


def _is_special(channel: str) -> bool:
    return channel in (INTERRUPT, ERROR, RESUME, NO_WRITES) or channel == "__scheduled__"


def _interrupts(write: Write) -> Iterable[Interrupt]:
    listed = write.value if isinstance(write.value, (list, tuple)) else [write.value]
    for one in listed:
        content = one.content if isinstance(one, Described) and isinstance(one.content, dict) else {"value": one}
        found = content.get("id") or content.get("interrupt_id")
        yield Interrupt(write.task_id, content.get("value"), found if isinstance(found, str) else None)


def _next_nodes(
    versions: Mapping[str, Any], seen: Mapping[str, Mapping[str, Any]], values: Mapping[str, Any]
) -> list[str]:
    """The nodes that are due, as the channels of a compiled graph tell; what other channels trigger is not known."""
    found = set()
    for channel, version in versions.items():
        if channel not in values:
            continue
        if channel.startswith(BRANCH):
            node = channel.removeprefix(BRANCH)
        elif channel.startswith(JOIN) and _is_complete(channel, values[channel]):
            node = channel.rpartition(":")[2]
        elif channel == START:
            node = START
        else:
            continue
        known = max((marks[channel] for marks in _seen_by(seen, node) if channel in marks), default=None)
        if known is None or known < version:
            found.add(node)
    sent = values.get(TASKS)
    for send in sent if isinstance(sent, (list, tuple)) else ():
        if isinstance(send, Described) and isinstance(send.content, (list, tuple)) and send.content:
            found.add(str(send.content[0]))
    return sorted(found)


def _seen_by(seen: Mapping[str, Mapping[str, Any]], node: str) -> Iterable[Mapping[str, Any]]:
    """What a node had seen. What takes the input of a function has the function's name."""
    return seen.values() if node == START else [seen.get(node, {})]


def _is_complete(channel: str, arrived: Any) -> bool:
    """Whether everything that a join waits for has come: `join:first+second:node`."""
    wanted = channel.removeprefix(JOIN).rpartition(":")[0].split("+")
    content = arrived.content if isinstance(arrived, Described) else arrived
    return isinstance(content, Sequence) and set(wanted) <= set(map(str, content))


def as_object(view: View) -> dict[str, Any]:
    """The checkpoint in plain JSON types."""
    conversations = {name: conversation_of(value) for name, value in view.channels.items()}
    return {
        "thread_id": view.thread_id,
        "checkpoint_ns": view.checkpoint_ns,
        "checkpoint_id": view.checkpoint_id,
        "parent_checkpoint_id": view.parent_id,
        "made_at": view.made_at.isoformat() if view.made_at else None,
        "step": view.step,
        "source": view.source,
        "metadata": as_json(view.metadata),
        "next": list(view.next_nodes),
        "input": as_json(view.given),
        "interrupts": [
            {"task_id": one.task_id, "id": one.interrupt_id, "value": as_json(one.value)} for one in view.interrupts
        ],
        "errors": [{"task_id": one.task_id, "error": as_json(one.value)} for one in view.errors],
        "messages": {
            name: [message.as_json() for message in messages] for name, messages in conversations.items() if messages
        },
        "channels": {name: as_json(value) for name, value in view.channels.items() if not conversations[name]},
        "rebuilt_channels": list(view.rebuilt_channels),
        "pending_writes": [
            {"task_id": one.task_id, "channel": one.channel, "value": as_json(one.value)} for one in view.writes
        ],
    }


def is_sealed(found: CheckpointTuple) -> bool:
    """Whether a checkpoint, stored as one piece, could not be opened."""
    whole: Any = found.checkpoint
    return isinstance(whole, Unreadable)
