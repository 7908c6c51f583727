"""The backends through which our process talks to the simulated server: one plain, one that compares heads."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from langgraph.checkpoint.base import BaseCheckpointSaver

from enhanced_checkpointing.backends.base import Backend, Heads, classify_by_type
from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.operations import Operation
from enhanced_checkpointing.resilience.attempts import Answer, Attempt, current_attempt
from enhanced_checkpointing.resilience.failures import Failure, FailureKind
from enhanced_checkpointing.serialization import SharingSerializer
from tests.simulation.server import Request, Server, ServerSays, run_now
from tests.simulation.world import World

T = TypeVar("T")


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
        self._working: list[asyncio.Task[None]] = []

    async def setup(self) -> None:
        await self._send(lambda: None, writes=True)

    async def probe(self) -> None:
        await self._send(lambda: None, writes=True)

    async def apply(self, operation: Operation) -> None:
        await self._apply([operation], {})

    async def ask(self, question: Callable[[BaseCheckpointSaver[Any]], Awaitable[T]]) -> T:
        answer: T = await self._send(lambda: run_now(question(self.saver)), writes=False)
        return answer

    async def fence(self, thread_id: str) -> bool:
        if self._world.random.random() < 0.25:
            return not self._server.may_still_write(thread_id)  # the session could not be ended in time
        await self._send(lambda: self._server.end_sessions(thread_id), writes=False)
        return True

    def classify(self, error: BaseException) -> Failure:
        return Failure(error.kind, error, answered=True) if isinstance(error, ServerSays) else classify_by_type(error)

    async def _apply(self, operations: Sequence[Operation], heads: Heads) -> bool:
        attempt, threads = current_attempt.get(), frozenset(operation.thread_id for operation in operations)
        drains = attempt is not None and attempt.operation == "drain"
        # Like PostgreSQL's backend, a live write ends lost sessions of its threads; a drain has done so.
        for thread_id in sorted(threads):
            if not drains and self._server.may_still_write(thread_id) and not await self.fence(thread_id):
                raise ServerSays(FailureKind.UNKNOWN, "a lost session may still write")

        def work() -> bool:
            if any(
                self._server.head(operations[0].thread_id, namespace) not in known for namespace, known in heads.items()
            ):
                return False
            gone = request.left or request.reply is None
            for operation in operations:
                if not (drains or gone):
                    self._watch(operation)
                self._server.apply(operation, "late" if gone else "drain" if drains else "live")
            return True

        request = Request(threads, True, work, None)
        answer: bool = await self._exchange(request)
        return answer

    async def _send(self, work: Callable[[], Any], *, writes: bool) -> Any:
        return await self._exchange(Request(frozenset(), writes, work, None))

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


class ComparingBackend(SimulatedBackend):
    """One that, like PostgreSQL's, compares heads and commits operations of many threads in one step; half of them
    take a lone operation without a task, like SQLite's."""

    compares_heads = True
    lanes = 2

    def lone(self, operation: Operation, attempt: Attempt) -> Answer | None:
        if self._world.seed % 2:
            return None
        answer = Answer(attempt)

        async def work() -> None:  # in place of a thread: nobody who waits for the answer knows of it
            current_attempt.set(attempt)
            try:
                await self._apply([operation], {})
            except Exception as error:  # noqa: BLE001  # it is the answer
                if not answer.done():
                    answer.set_exception(error)
            else:
                if not answer.done():
                    answer.set_result(None)

        attempt.launch = lambda: self._working.append(asyncio.get_running_loop().create_task(work()))
        return answer

    async def apply_batch(self, operations: Sequence[Operation]) -> None:
        await self._apply(operations, {})

    async def apply_all(self, operations: Sequence[Operation], heads: Heads) -> bool:
        return await self._apply(operations, heads)
