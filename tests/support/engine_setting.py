"""An engine with everything that it works on, and a primary in memory that does what a test tells it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from enhanced_checkpointing.backends.base import classify_by_type
from enhanced_checkpointing.backends.memory.backend import MemoryBackend
from enhanced_checkpointing.config import create_memory_checkpointer
from enhanced_checkpointing.journal.api import BaseHead, JournalEntry
from enhanced_checkpointing.journal.memory import MemoryJournal
from enhanced_checkpointing.journal.workers import Workers
from enhanced_checkpointing.observability.events import Notice, OperationScope
from enhanced_checkpointing.operations import Operation, Put, PutWrites
from enhanced_checkpointing.resilience.attempts import Answer, Attempt
from enhanced_checkpointing.resilience.breaker import Breaker, BreakerSettings
from enhanced_checkpointing.resilience.deadline import Deadline
from enhanced_checkpointing.resilience.failures import Failure, FailureKind
from enhanced_checkpointing.resilience.guard import Guard
from enhanced_checkpointing.saver.core import Core
from enhanced_checkpointing.saver.read_path import Engine
from enhanced_checkpointing.serialization import SharingSerializer
from enhanced_checkpointing.standby.cache import Standby
from tests.support.author import Author
from tests.support.recorder import Recorder
from tests.support.virtual_time import now


def label(operation: Operation) -> str:
    """`a1` is the first put of thread a; writes are called as their task, and a deletion `a!`."""
    if isinstance(operation, Put):
        return f"{operation.thread_id}{dict(operation.metadata)['step']}"
    return operation.task_id if isinstance(operation, PutWrites) else f"{operation.thread_id}!"


class Wrong(Exception):
    """An error whose kind a test chooses."""

    def __init__(self, kind: FailureKind, fix: str = "") -> None:
        super().__init__(f"it is {kind.name}, password=hunter2")
        self.kind = kind
        self.fix = fix


THREAD = "a thread of the backend"


class Primary(MemoryBackend):
    """Memory that raises what it is told to, can be kept waiting, and takes a batch as a whole or not at all."""

    lanes = 1

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.asked: list[list[str]] = []
        """The labels of every batch that it was given."""
        self.stored: list[str] = []
        self.wrong: Wrong | None = None
        self.at_fault: dict[str, BaseException] = {}
        """What it says to a batch with one of these operations."""
        self.answers: list[Wrong | None] = []
        """What it says to the next batches, one after another."""
        self.gate: asyncio.Event | None = None
        self.threads: list[asyncio.Task[None]] = []

    async def apply_batch(self, operations: Sequence[Operation]) -> None:
        labels = [label(operation) for operation in operations]
        self.asked.append(labels)
        if self.gate is not None:
            await self.gate.wait()
        wrong = self.answers.pop(0) if self.answers else self.wrong
        for each in labels:
            if each in self.at_fault:
                raise self.at_fault[each]
        if wrong is not None:
            raise wrong
        for operation in operations:
            await self.apply(operation)
        self.stored += labels

    async def ask(self, question: Any) -> Any:
        if self.wrong is not None:
            raise self.wrong
        return await super().ask(question)

    def classify(self, error: BaseException) -> Failure:
        if isinstance(error, Wrong):
            return Failure(error.kind, error, answered=True, fix=error.fix)
        return classify_by_type(error)


def answers_by_a_thread(backend: Primary, operation: Operation, attempt: Attempt) -> Answer:
    """A `Backend.lone`: an attempt without a task. What a thread would do is done by a task that nobody knows of."""
    answer = Answer(attempt)

    async def work() -> None:
        try:
            await backend.apply_batch([operation])
        except Exception as error:  # noqa: BLE001  # it is the answer
            if not answer.done():
                answer.set_exception(error)
        else:
            if not answer.done():
                answer.set_result(None)

    def launch() -> None:
        attempt.hold(lambda: answer.set_exception(ConnectionResetError("cut")))
        backend.threads.append(asyncio.get_running_loop().create_task(work(), name=THREAD))

    attempt.launch = launch
    return answer


class SlowJournal(MemoryJournal):
    """Notes what is appended and how much time that has, and takes it when its gate is open."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.begun: list[str] = []
        self.base_heads: list[BaseHead] = []
        self.seconds: list[float] = []
        """The time that each append was given."""
        self.gates: dict[str, asyncio.Event] = {}
        """By thread."""

    def begin(self, operation: Operation, base_head: BaseHead) -> None:
        """Every operation has to wait."""

    async def append(self, operation: Operation, base_head: BaseHead, deadline: Deadline) -> JournalEntry:
        self.begun.append(label(operation))
        self.base_heads.append(base_head)
        self.seconds.append(deadline.remaining())
        if (gate := self.gates.get(operation.thread_id)) is not None:
            await gate.wait()
        return await super().append(operation, base_head, deadline)


class ScopeRecorder(Recorder):
    """Keeps the scopes of all operations, too."""

    def __init__(self) -> None:
        super().__init__()
        self.scopes: list[OperationScope] = []

    def operation(self, scope: OperationScope) -> AbstractContextManager[object]:
        self.scopes.append(scope)
        return super().operation(scope)

    def outcomes(self) -> list[tuple[str | None, str]]:
        """Of every operation, in the order in which they came: its thread and its outcome."""
        return [(scope.thread_id, scope.outcome) for scope in self.scopes]


class Setting:
    """An engine on a backend of its own kind. Nothing drains."""

    def __init__(
        self,
        *,
        backend: type[MemoryBackend] = Primary,
        with_journal: bool = True,
        capacity: int = 1_000_000,
        clock: Callable[[], float] = now,
        workers: Workers | None = None,
        **fields: Any,
    ) -> None:
        config = create_memory_checkpointer(**{"deadline": 0.3, "retries": 0, "on_unknown_thread": "raise", **fields})
        self.serializer = SharingSerializer()
        self.any_backend = backend(config, self.serializer)
        self.recorder = ScopeRecorder()
        self.breaker = Breaker(now, BreakerSettings(), lambda opened, reason: None)
        self.journal = SlowJournal(capacity)
        self.journal.workers = workers
        journal = self.journal if with_journal else None
        self.standby = Standby(
            self.serializer,
            1_000_000,
            lambda _: False,
            warn=lambda what: self.recorder.emit(Notice("WARNING", what)),
        )
        guard = Guard(
            "memory",
            breaker=self.breaker,
            classify=self.any_backend.classify,
            saturated=self.any_backend.saturated,
            telemetry=self.recorder,
            retries=config.retries,
        )
        core = Core(
            config=config,
            backend=self.any_backend,
            guard=guard,
            breaker=self.breaker,
            journal=journal,
            standby=self.standby,
            serializer=self.serializer,
            telemetry=self.recorder,
            clock=clock,
        )
        self.engine = Engine(core)
        self._authors: dict[str, Author] = {}

    @property
    def backend(self) -> Primary:
        assert isinstance(self.any_backend, Primary)
        return self.any_backend

    @property
    def pending(self) -> int:
        return self.journal.status().pending

    def author(self, thread_id: str) -> Author:
        return self._authors.setdefault(thread_id, Author(thread_id, serializer=self.serializer))

    def next_put(self, thread_id: str) -> Put:
        """The next put of a thread, whose label is the thread with a number."""
        author = self.author(thread_id)
        return author.put({"n": [author.head]})

    def writes(self, thread_id: str, name: str) -> PutWrites:
        """Writes on the newest checkpoint of a thread, with this label."""
        return self.author(thread_id).writes(("n", [name]), task_id=name)

    async def put(self, thread_id: str = "a") -> None:
        """The next put, as LangGraph makes it."""
        made = self.next_put(thread_id)
        await self.engine.writes.put(
            made.config(), made.checkpoint(made.live_values or {}), made.metadata, made.new_versions
        )

    async def know(self, *thread_ids: str) -> None:
        """See these threads empty at the primary, so that they may be written in an outage."""
        for thread_id in thread_ids:
            await self.engine.get_tuple(self.author(thread_id).config())
        self.recorder.scopes.clear()

    async def begin(self, *operations: Operation) -> list[asyncio.Task[None]]:
        """Let callers settle these at the same time; all have been given to the engine when this returns."""
        tasks = [asyncio.ensure_future(self.engine.writes.settle(operation)) for operation in operations]
        await asyncio.sleep(0)
        return tasks

    async def begin_puts(self, *thread_ids: str) -> list[asyncio.Task[None]]:
        return await self.begin(*(self.next_put(thread_id) for thread_id in thread_ids))

    def journaled(self, thread_id: str) -> list[str]:
        """The labels of what is pending of a thread, in its order."""
        operations = self.journal._operations
        return [label(operations[entry.sequence]) for entry in self.journal.entries(thread_id)]


async def turns() -> None:
    """Let everything go as far as it can without time passing."""
    for _ in range(20):
        await asyncio.sleep(0)
