"""What the demo knows while it runs, the proof that nothing was lost, and the report that is made of both."""

from __future__ import annotations

import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from itertools import zip_longest
from typing import Any, Self

from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from enhanced_checkpointing.errors import redact

_LIVE_CALLS = frozenset(f"checkpoint.{name}" for name in ("get", "list", "put", "put_writes", "delete"))
_NANOSECONDS = 1e9


class State(Enum):
    """What the checkpointer is in."""

    STARTING = "STARTING"
    HEALTHY = "HEALTHY"
    OUTAGE = "OUTAGE"
    DRAINING = "DRAINING"


@dataclass(frozen=True)
class Event:
    """One line of the timeline; `at` is seconds since the start, `source` says who tells it."""

    at: float
    source: str
    text: str


@dataclass
class Conversation:
    """How far one conversation is; `expected_calls` of the model is what its twin without faults needed.

    `name` is its thread's id too.
    """

    name: str
    title: str
    turns: int
    expected_calls: int
    turn: int = 0
    calls: int = 0
    finished: bool = False
    error: str | None = None

    def count_call(self) -> None:
        self.calls += 1

    @property
    def share(self) -> float:
        """What is done of it, from 0 to 1."""
        return 1.0 if self.finished else min(self.calls / self.expected_calls, 1.0)

    @property
    def over(self) -> bool:
        return self.finished or self.error is not None


class CallMeter(SpanProcessor):
    """Counts and times the checkpointer's calls by the spans that it makes of each anyway."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.seconds: list[float] = []

    def install(self) -> None:
        """Get the spans of this process from now on; they go nowhere else."""
        os.environ.pop("OTEL_SDK_DISABLED", None)  # the figures come from the spans, and nothing is sent
        provider = trace.get_tracer_provider()
        if not isinstance(provider, TracerProvider):
            provider = TracerProvider(sampler=ALWAYS_ON, shutdown_on_exit=False)
            trace.set_tracer_provider(provider)
        provider.add_span_processor(self)

    def on_end(self, span: ReadableSpan) -> None:
        if span.name in _LIVE_CALLS and span.start_time is not None and span.end_time is not None:
            self.outcomes[str((span.attributes or {}).get("checkpoint.outcome"))] += 1
            self.seconds.append((span.end_time - span.start_time) / _NANOSECONDS)

    @property
    def p50_milliseconds(self) -> float:
        return statistics.median(self.seconds) * 1000 if self.seconds else 0.0

    @property
    def max_milliseconds(self) -> float:
        return max(self.seconds, default=0.0) * 1000


@dataclass
class Record:
    """Everything that is shown; `guarded` run on the checkpointer of this library, `bare` on LangGraph's own."""

    on_event: Callable[[Event], None]
    title: str = "the database"
    started: float = field(default_factory=time.monotonic)
    state: State = State.STARTING
    fault: str | None = None
    """What is broken now."""
    pending: int = 0
    """Operations that wait in the journal."""
    drained: int = 0
    """Operations that left it for the database."""
    faults: Counter[str] = field(default_factory=Counter)
    meter: CallMeter = field(default_factory=CallMeter)
    guarded: list[Conversation] = field(default_factory=list)
    bare: list[Conversation] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def note_journal(self, pending: int, dead_letters: int) -> None:
        """Take over what waits in the journal; what left it otherwise than as a dead letter is drained."""
        self.pending = pending
        self.drained = max(self.drained, self.meter.outcomes["journaled"] - pending - dead_letters)

    @property
    def turns_done(self) -> float:
        """How many turns the conversations are through, on average."""
        return sum(one.share * one.turns for one in self.guarded) / max(len(self.guarded), 1)

    @property
    def turns_left(self) -> float:
        """How many turns they still have, on average."""
        return sum(one.turns for one in self.guarded) / max(len(self.guarded), 1) - self.turns_done

    @property
    def over(self) -> bool:
        """Whether no conversation goes on with the checkpointer that is shown."""
        return all(one.over for one in self.guarded)

    def tell(self, source: str, text: str) -> None:
        """Add a line to the timeline."""
        event = Event(self.elapsed, source, redact(text))
        self.events.append(event)
        self.on_event(event)

    def enter(self, state: State) -> None:
        """Note the state, and tell when it is another one than before."""
        if state is not self.state:
            self.state = state
            self.tell("state", state.value)

    # The three methods of a `logger_service`: what the library logs belongs to the story.

    def info(self, line: str) -> None:
        self.tell("log", line)

    def warning(self, line: str) -> None:
        self.tell("log", line)

    def error(self, line: str) -> None:
        self.tell("log", line)


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


_FAULT_WORDS = {
    "kill": ("kill", "kills"),
    "freeze": ("freeze", "freezes"),
    "cut": ("cut connection", "cut connections"),
    "hang": ("hang", "hangs"),
    "lock": ("lock", "locks"),
}


@dataclass(frozen=True)
class Row:
    """One conversation: `difference` from its twin, and how the `bare_saver` lost it; None where they did not."""

    conversation: str
    title: str
    messages: int
    twin_messages: int
    checkpoints: int
    twin_checkpoints: int
    difference: str | None
    bare_saver_lost_it: str | None
    bare_saver_turn: int

    @classmethod
    def of(cls, guarded: Conversation, found: Comparison, bare: Conversation, *, bare_equal: bool) -> Self:
        otherwise = None if bare_equal else "it ended with other messages"
        return cls(
            conversation=guarded.name,
            title=guarded.title,
            messages=found.messages,
            twin_messages=found.twin_messages,
            checkpoints=found.checkpoints,
            twin_checkpoints=found.twin_checkpoints,
            difference=guarded.error or found.difference,
            bare_saver_lost_it=bare.error or otherwise,
            bare_saver_turn=bare.turn,
        )


@dataclass(frozen=True)
class Report:
    """The result; times are seconds unless they say milliseconds."""

    equal: bool
    verdict: str
    database: str
    seed: int
    seconds: float
    conversations: list[Row]
    bare_saver_lost: int
    faults: dict[str, int]
    operations: dict[str, int]
    latency_milliseconds: dict[str, float]
    timeline: list[Event]

    @classmethod
    def of(cls, record: Record, rows: list[Row], *, seed: int) -> Self:
        meter = record.meter
        return cls(
            equal=not any(row.difference for row in rows),
            verdict=_verdict(record, rows),
            database=record.title,
            seed=seed,
            seconds=round(record.elapsed, 1),
            conversations=rows,
            bare_saver_lost=sum(row.bare_saver_lost_it is not None for row in rows),
            faults=dict(record.faults),
            operations={**meter.outcomes, "drained": record.drained},
            latency_milliseconds={"p50": round(meter.p50_milliseconds, 2), "max": round(meter.max_milliseconds, 1)},
            timeline=record.events,
        )

    def as_json(self) -> dict[str, Any]:
        """The report in plain JSON types."""
        return asdict(self)


def _verdict(record: Record, rows: list[Row]) -> str:
    faults = " and ".join(f"{count} {_FAULT_WORDS[name][count > 1]}" for name, count in record.faults.items())
    lost = sum(row.bare_saver_lost_it is not None for row in rows)
    bare = f"in the same run the bare saver lost {lost} of {len(rows)}"
    different = [row for row in rows if row.difference]
    if different:
        return f"{len(different)} of {len(rows)} conversations differ from their twins without faults; {bare}."
    if not record.meter.outcomes["journaled"]:
        return f"Nothing differs, but no write met an outage, so this run proves nothing; {bare}."
    return (
        f"Through {faults} nothing was lost: all {len(rows)} conversations equal their twins without faults, "
        f"{sum(row.messages for row in rows)} messages and {sum(row.checkpoints for row in rows)} checkpoints; {bare}."
    )
