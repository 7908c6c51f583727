"""A database server in the simulated world, and the backend through which our process talks to it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver

from enhanced_checkpointing.backends.contract import Backend, classify_by_type
from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.operations import Operation, apply_shared
from enhanced_checkpointing.resilience.failure_kinds import Failure, FailureKind
from enhanced_checkpointing.resilience.guard import current_attempt
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
    """What one session asks of the server. `reply` is None once the process that asked is dead."""

    subject: str | None
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
        return any(request.left and request.subject == thread_id for request in self._open)

    def end_sessions(self, thread_id: str) -> None:
        """Terminate the sessions on which writes to a thread were left behind."""
        for request in list(self._open):
            if request.left and request.subject == thread_id and request.reply is not None:
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


class SimulatedBackend(Backend):
    """One process's way to the server. `watch` hears of every operation that is applied while its caller waits."""

    name = "simulated"

    def __init__(
        self, config: CheckpointerConfig, world: World, server: Server, watch: Callable[[Operation], None]
    ) -> None:
        super().__init__(config, SharingSerializer())
        self._world = world
        self._server = server
        self._watch = watch
        self.saver = server.saver

    async def setup(self) -> None:
        await self._send(None, lambda: None, writes=True)

    async def probe(self) -> None:
        await self._send(None, lambda: None, writes=True)

    async def apply(self, operation: Operation) -> None:
        attempt = current_attempt.get()
        drains = attempt is not None and attempt.operation == "drain"
        # Like PostgreSQL's backend, a live write ends lost sessions of its thread; a drain has done so at its beginning.
        if (
            not drains
            and self._server.may_still_write(operation.thread_id)
            and not await self.fence(operation.thread_id)
        ):
            raise ServerSays(FailureKind.UNKNOWN, "a lost session may still write")

        def work() -> None:
            if not (drains or request.left or request.reply is None):
                self._watch(operation)
            gone = request.left or request.reply is None
            self._server.apply(operation, "late" if gone else "drain" if drains else "live")

        request = Request(operation.thread_id, True, work, None)
        await self._exchange(request)

    async def ask(self, question: Callable[[BaseCheckpointSaver[Any]], Awaitable[T]]) -> T:
        answer: T = await self._send(None, lambda: run_now(question(self.saver)), writes=False)
        return answer

    async def fence(self, thread_id: str) -> bool:
        if self._world.random.random() < 0.05:
            return not self._server.may_still_write(thread_id)  # the session could not be ended in time
        await self._send(None, lambda: self._server.end_sessions(thread_id), writes=False)
        return True

    def classify(self, error: BaseException) -> Failure:
        return Failure(error.kind, error, answered=True) if isinstance(error, ServerSays) else classify_by_type(error)

    async def _send(self, subject: str | None, work: Callable[[], Any], *, writes: bool) -> Any:
        return await self._exchange(Request(subject, writes, work, None))

    async def _exchange(self, request: Request) -> Any:
        attempt = current_attempt.get()
        self._world.step("our process asks the primary")
        request.reply = asyncio.get_running_loop().create_future()
        if attempt is not None:
            attempt.hold(lambda: self._server.cut(request))
        self._server.send(request)
        try:
            answer = await request.reply
        finally:
            if not request.over:
                request.left = True
            if attempt is not None:
                attempt.let_go()
        self._world.step("our process hears from the primary")
        return answer


def run_now(work: Awaitable[T]) -> T:
    """The result of a coroutine that waits for nothing."""
    assert isinstance(work, Coroutine)
    try:
        work.send(None)
    except StopIteration as ended:
        result: T = ended.value
        return result
    raise AssertionError("a question to the simulated primary waited for something")


def describe(operation: Operation) -> str:
    """An operation in one word of the trace."""
    checkpoint = getattr(operation, "checkpoint_id", "")
    return f"{operation.name} {operation.thread_id}{getattr(operation, 'checkpoint_ns', '')} {checkpoint}".rstrip()
