"""One checkpoint as an operator looks at it: its state, what comes next, and what it waits for. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from langgraph.checkpoint.base import CheckpointTuple

from enhanced_checkpointing.backends.directory import time_of
from enhanced_checkpointing.cli.plain_values import Described, Unreadable, as_json, unwrapped
from enhanced_checkpointing.cli.threads.conversation import conversation_of, joined
from enhanced_checkpointing.operations import checkpoint_id_of, namespace_of

__all__ = ["Interrupt", "View", "Write", "delta_channels", "is_inner", "nodes_between", "rebuilt", "view_of"]

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
