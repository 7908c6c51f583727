"""What the code under test tells of itself, in the trace of the run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from enhanced_checkpointing.observability.events import Diverged, Event, Gauges, OperationScope, ThreadDrained
from tests.simulation.world import World


class Trace:
    """The telemetry of a process, into the trace of the run."""

    def __init__(self, world: World) -> None:
        self._world = world

    def operation(self, scope: OperationScope) -> AbstractContextManager[object]:
        return nullcontext()

    def emit(self, event: Event) -> None:
        if isinstance(event, ThreadDrained):
            self._world.note(f"drain of {event.thread_id}: {event.operations} operations, {event.outcome}")
        elif isinstance(event, Diverged):
            self._world.problem(f"a divergence, although nobody else writes: {event}")
        elif not hasattr(event, "started_at"):  # which is real time
            self._world.note(str(event))

    def observe(self, gauges: Callable[[], Gauges]) -> None:
        """Nobody reads gauges here."""

    def close(self) -> None:
        """Nothing is open."""
