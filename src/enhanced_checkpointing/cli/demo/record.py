"""What the demo knows while it runs: calls, conversations, and what happened when. The screen reads it."""

from __future__ import annotations

import os
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from enhanced_checkpointing.errors import redact

__all__ = ["CallMeter", "Conversation", "Event", "Record", "State"]

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
