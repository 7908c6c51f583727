"""A telemetry sink that keeps what it is told, for tests that ask what was said."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

from enhanced_checkpointing.observability.events import Event, Gauges, OperationScope

T = TypeVar("T")


class Recorder:
    """Keeps all events in their order."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def operation(self, scope: OperationScope) -> AbstractContextManager[object]:
        return nullcontext()

    def emit(self, event: Event) -> None:
        self.events.append(event)

    def observe(self, gauges: Callable[[], Gauges]) -> None:
        """Nothing reads gauges here."""

    def close(self) -> None:
        """Nothing is open."""

    def of(self, kind: type[T]) -> list[T]:
        return [event for event in self.events if isinstance(event, kind)]
