"""What the callers do: conversations of which every step is prepared before the clock starts."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, ChannelVersions, Checkpoint, CheckpointMetadata
from langgraph.checkpoint.base.id import uuid6

MESSAGES = 20
MESSAGE_LENGTH = 60

Saver = BaseCheckpointSaver[Any]
Caller = Callable[[list[float]], Awaitable[None]]
"""Makes its calls one after the other, and appends the seconds that each of them took."""
Work = Callable[[int], list[Caller]]
"""Prepares the callers of one round, each with as many repetitions of what it does."""

_WORDS = ("engine", "loom", "number", "symbol", "card", "mill", "analyst", "note", "table", "poem", "proof", "letter")
_TEXT = " ".join(random.Random(1).choices(_WORDS, k=20_000))
_names = itertools.count()


@dataclass(frozen=True)
class State:
    """What a conversation keeps: `MESSAGES` messages of that length, plain dictionaries or LangChain's objects."""

    name: str = f"{MESSAGES} messages"
    message_length: int = MESSAGE_LENGTH
    langchain: bool = False

    def message(self, number: int) -> Any:
        offset = 17 * number % (len(_TEXT) - self.message_length)
        content = _TEXT[offset : offset + self.message_length]
        if self.langchain:
            kind = AIMessage if number % 2 else HumanMessage
            return kind(content, id=f"m{number}")
        return {"role": "assistant" if number % 2 else "user", "content": content}


@dataclass(frozen=True, slots=True)
class Step:
    """One put and one put_writes."""

    checkpoint: Checkpoint
    metadata: CheckpointMetadata
    new_versions: ChannelVersions
    task_id: str
    writes: list[tuple[str, Any]]


class Conversation:
    """A thread of its own that grows step by step; each step replaces the list of messages by one of its own."""

    def __init__(self, state: State) -> None:
        self.config: RunnableConfig = {"configurable": {"thread_id": f"thread-{next(_names)}", "checkpoint_ns": ""}}
        self._state = state
        self._messages = [state.message(number) for number in range(MESSAGES)]
        self._done = 0

    @property
    def thread_id(self) -> str:
        return str(self.config["configurable"]["thread_id"])

    def prepare(self, count: int) -> list[Step]:
        """The next `count` steps."""
        return [self._next() for _ in range(count)]

    def _next(self) -> Step:
        self._done += 1
        message = self._state.message(MESSAGES + self._done)
        self._messages = [*self._messages[1:], message]
        version = f"{self._done:032}.0000000000000000"
        checkpoint: Checkpoint = {
            "v": 4,
            "id": str(uuid6(clock_seq=self._done % 16_384)),
            "ts": "2026-01-01T00:00:00+00:00",
            "channel_values": {"messages": self._messages, "summary": "what was said so far"},
            "channel_versions": {"messages": version, "summary": version},
            "versions_seen": {"__input__": {}, "agent": {"messages": version}},
            "updated_channels": ["messages"],
        }
        return Step(
            checkpoint,
            {"source": "loop", "step": self._done, "parents": {}},
            {"messages": version, "summary": version},
            f"task-{self._done}",
            [("messages", [message])],
        )


def writing(saver: Saver, callers: int, state: State) -> Work:
    """Each caller writes to a conversation of its own, which goes on from round to round."""
    conversations = [Conversation(state) for _ in range(callers)]

    def prepare(repeats: int) -> list[Caller]:
        return [_writer(saver, conversation, conversation.prepare(repeats)) for conversation in conversations]

    return prepare


def _writer(saver: Saver, conversation: Conversation, steps: list[Step]) -> Caller:
    async def call(seconds: list[float]) -> None:
        config = conversation.config
        for step in steps:
            started_at = time.perf_counter()
            config = await saver.aput(config, step.checkpoint, step.metadata, step.new_versions)
            put_at = time.perf_counter()
            await saver.aput_writes(config, step.writes, step.task_id)
            seconds.append(put_at - started_at)
            seconds.append(time.perf_counter() - put_at)
        conversation.config = config

    return call


async def write_threads(saver: Saver, count: int, steps: int, state: State) -> list[RunnableConfig]:
    """Make `count` threads of `steps` steps each, a few at a time, and return what asks for their newest checkpoint."""
    conversations = [Conversation(state) for _ in range(count)]
    for first in range(0, count, 64):
        some = conversations[first : first + 64]
        await asyncio.gather(*(_writer(saver, one, one.prepare(steps))([]) for one in some))
    return [{"configurable": {"thread_id": one.thread_id, "checkpoint_ns": ""}} for one in conversations]


def reading(saver: Saver, threads: list[RunnableConfig]) -> Work:
    """One caller for each of these threads reads its newest checkpoint again and again."""

    def prepare(repeats: int) -> list[Caller]:
        return [_reader(saver, config, repeats) for config in threads]

    return prepare


def _reader(saver: Saver, config: RunnableConfig, repeats: int) -> Caller:
    async def call(seconds: list[float]) -> None:
        for _ in range(repeats):
            started_at = time.perf_counter()
            found = await saver.aget_tuple(config)
            seconds.append(time.perf_counter() - started_at)
            if found is None:
                raise RuntimeError("a thread that exists was not found: the figures would say nothing")

    return call
