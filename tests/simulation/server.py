"""A database server in the simulated world, in all the ways in which one fails."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

from langgraph.checkpoint.memory import InMemorySaver

from enhanced_checkpointing.operations import Operation, apply_shared
from enhanced_checkpointing.resilience.failures import FailureKind
from enhanced_checkpointing.serialization import SharingSerializer
from tests.simulation.world import World

T = TypeVar("T")


class Mode(Enum):
    """How the server treats what arrives."""

    UP = "up"
    REFUSING = "refusing"
    FROZEN = "frozen"
    READ_ONLY = "read-only"
    SLOW = "slow"
    LOSSY = "losing replies"
    FUSSY = "rolling back"


class ServerSays(Exception):
    """An error that the server answers with; it names its kind itself."""

    def __init__(self, kind: FailureKind, text: str) -> None:
        super().__init__(text)
        self.kind = kind


@dataclass(slots=True, eq=False)
class Request:
    """What one session asks of the server, about which threads. `reply` is None once the process that asked is dead."""

    subjects: frozenset[str]
    writes: bool
    work: Callable[[], Any]
    reply: asyncio.Future[Any] | None
    left: bool = False
    """Whoever asked has gone; the server does not know that."""
    over: bool = False


@dataclass(frozen=True, slots=True)
class Applied:
    """An operation that reached the data; `way` is how: "live", "drain", or "late" when nobody waited any more."""

    at: float
    operation: Operation
    way: str


class Server:
    """Its data and what is under way at it outlive our process."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.saver = InMemorySaver(serde=SharingSerializer())
        self.mode = Mode.UP
        self.applied: list[Applied] = []
        self._open: list[Request] = []
        self._stuck: list[Request] = []

    def become(self, mode: Mode) -> None:
        """Change the way in which it serves."""
        self._world.note(f"primary {mode.value}")
        before, self.mode = self.mode, mode
        if mode is Mode.REFUSING:
            for request in list(self._open):
                self._answer(request, ConnectionResetError("server closed the connection unexpectedly"))
            self._stuck.clear()
        elif before is Mode.FROZEN and mode is not Mode.FROZEN:
            stuck, self._stuck = self._stuck, []
            for request in stuck:
                # What a dead process sent is served first; what was left behind may be served late, as a zombie.
                late = 0.0 if request.reply is None else self._world.random.uniform(0.0, 3.0 if request.left else 0.05)
                self._world.after(late, lambda request=request: self._serve(request))  # type: ignore[misc]

    def send(self, request: Request) -> None:
        """Take a request, which arrives in a moment."""
        self._open.append(request)
        self._world.after(self._world.random.uniform(0.0002, 0.004), lambda: self._arrive(request))

    def cut(self, request: Request) -> None:
        """The connection is cut at our end. The server goes on with what it was asked."""
        request.left = True
        if request.reply is not None and not request.reply.done():
            request.reply.set_exception(ConnectionAbortedError("cut"))

    def may_still_write(self, thread_id: str) -> bool:
        return any(request.left and thread_id in request.subjects for request in self._open)

    def end_sessions(self, thread_id: str) -> None:
        """Terminate the sessions on which writes to a thread were left behind."""
        for request in list(self._open):
            if request.left and thread_id in request.subjects and request.reply is not None:
                self._end(request)
                self._world.note(f"primary ended a session of {thread_id}")

    def lose_client(self) -> None:
        """Our process died. What it sent and is not served yet is served now, or never, or when the server wakes."""
        for request in list(self._open):
            request.reply = None
            if request not in self._stuck:
                if self._world.random.random() < 0.5:
                    self._serve(request)
                self._end(request)

    def apply(self, operation: Operation, way: str) -> None:
        """Commit an operation."""
        self._world.note(f"primary applies {describe(operation)} ({way})")
        self.applied.append(Applied(self._world.now, operation, way))
        run_now(apply_shared(self.saver, operation))

    def head(self, thread_id: str, checkpoint_ns: str) -> str | None:
        """The newest checkpoint of a namespace."""
        return max(self.saver.storage.get(thread_id, {}).get(checkpoint_ns, {}), default=None)

    def _arrive(self, request: Request) -> None:
        random = self._world.random
        if request.over:
            return
        if self.mode is Mode.REFUSING:
            self._answer(request, ConnectionRefusedError("connection refused"))
        elif self.mode is Mode.FROZEN:
            self._stuck.append(request)
        elif self.mode is Mode.READ_ONLY and request.writes:
            self._answer(request, ServerSays(FailureKind.OUTAGE, "cannot execute in a read-only transaction"))
        elif self.mode is Mode.FUSSY and random.random() < 0.5:
            self._answer(request, ServerSays(FailureKind.TRANSIENT, "could not serialize access"))
        elif self.mode is Mode.SLOW:
            self._world.after(random.uniform(0.1, 4.0), lambda: self._serve(request))
        elif random.random() < 0.01:  # one connection hangs by itself
            self._world.after(random.uniform(0.0, 12.0), lambda: self._serve(request))
        else:
            self._serve(request)

    def _serve(self, request: Request) -> None:
        if request.over:
            return
        if self.mode is Mode.FROZEN:
            self._stuck.append(request)
            return
        lost = self.mode is Mode.LOSSY and self._world.random.random() < 0.5
        answer = request.work()
        if not lost:
            self._answer(request, answer)
        elif self._world.random.random() < 0.5:
            self._answer(request, ConnectionResetError("connection reset by peer"))
        else:
            self._end(request)  # and nobody ever answers

    def _answer(self, request: Request, answer: Any) -> None:
        self._end(request)
        self._world.after(self._world.random.uniform(0.0002, 0.002), lambda: _reply(request, answer))

    def _end(self, request: Request) -> None:
        request.over = True
        if request in self._open:
            self._open.remove(request)
        if request in self._stuck:
            self._stuck.remove(request)


def _reply(request: Request, answer: Any) -> None:
    if request.reply is None or request.reply.done() or request.reply.get_loop().is_closed():
        return
    if isinstance(answer, Exception):
        request.reply.set_exception(answer)
    else:
        request.reply.set_result(answer)


def run_now(work: Awaitable[T]) -> T:
    """The result of a coroutine that waits for nothing; where it lets others have a turn, none of them is here."""
    assert isinstance(work, Coroutine)
    try:
        while work.send(None) is None:
            pass
    except StopIteration as ended:
        result: T = ended.value
        return result
    raise AssertionError("a question to the simulated primary waited for something")


def describe(operation: Operation) -> str:
    """An operation in one word of the trace."""
    checkpoint = getattr(operation, "checkpoint_id", "")
    return f"{operation.name} {operation.thread_id}{getattr(operation, 'checkpoint_ns', '')} {checkpoint}".rstrip()
