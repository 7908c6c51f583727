"""The proof: what a fresh, bare saver finds in the database, compared with the twin that met no fault."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple

__all__ = ["Comparison", "Stored", "compare", "plain_messages", "read_stored"]


@dataclass(frozen=True)
class Stored:
    """What is stored of one conversation, without what differs between any two runs: ids of checkpoints, times.

    `messages` are those of the newest state, `checkpoints` one line for each of the team's and of its workers'.
    """

    messages: tuple[str, ...]
    checkpoints: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """One conversation and its twin; `difference` is the first one in words, None where they are equal."""

    messages: int
    twin_messages: int
    checkpoints: int
    twin_checkpoints: int
    difference: str | None


async def read_stored(saver: BaseCheckpointSaver[Any], thread_id: str) -> Stored:
    """Read a whole conversation, the checkpoints of all namespaces."""
    config: RunnableConfig = {"configurable": {"thread_id": thread_id}}
    found = [item async for item in saver.alist(config)]
    team = [item for item in found if not item.config["configurable"].get("checkpoint_ns")]
    newest = max(team, key=lambda item: item.checkpoint["id"], default=None)
    messages = newest.checkpoint["channel_values"].get("messages", []) if newest is not None else []
    return Stored(plain_messages(messages), tuple(sorted(map(_line_of, found))))


def plain_messages(messages: Sequence[Any]) -> tuple[str, ...]:
    """Who said what, one line for each message."""
    return tuple(map(_plain, messages))


def compare(stored: Stored, twin: Stored) -> Comparison:
    """Compare message by message and checkpoint by checkpoint."""
    counts = len(stored.messages), len(twin.messages), len(stored.checkpoints), len(twin.checkpoints)
    return Comparison(*counts, difference=_first_difference(stored, twin))


def _first_difference(stored: Stored, twin: Stored) -> str | None:
    for number, (found, expected) in enumerate(zip_longest(stored.messages, twin.messages), start=1):
        if found != expected:
            return f"message {number} is {found or 'missing'}, its twin's is {expected or 'missing'}"
    if len(stored.checkpoints) != len(twin.checkpoints):
        return f"{len(stored.checkpoints)} checkpoints are stored, the twin has {len(twin.checkpoints)}"
    for found, expected in zip(stored.checkpoints, twin.checkpoints, strict=True):
        if found != expected:
            return f"a checkpoint is {found}, its twin's is {expected}"
    return None


def _line_of(item: CheckpointTuple) -> str:
    namespace = str(item.config["configurable"].get("checkpoint_ns") or "")
    graph = "|".join(level.partition(":")[0] for level in namespace.split("|"))  # after the colon comes a task's id
    step, source = item.metadata.get("step"), item.metadata.get("source")
    values = item.checkpoint["channel_values"]
    state = ", ".join(f"{channel}={_plain(values[channel])}" for channel in sorted(values))
    return f"{graph or 'team'} step {step} {source} writes={len(item.pending_writes or ())}: {state}"


def _plain(value: Any) -> str:
    if isinstance(value, BaseMessage):
        return f"{value.type} {value.name} {value.id}: {value.text}"
    if isinstance(value, list):
        return f"[{'; '.join(map(_plain, value))}]"
    if isinstance(value, dict):
        return f"{{{'; '.join(f'{key}={_plain(value[key])}' for key in sorted(value))}}}"
    return repr(value)
