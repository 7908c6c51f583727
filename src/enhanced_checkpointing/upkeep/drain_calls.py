"""What a drain asks of the primary, each call with a deadline of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from langgraph.checkpoint.base import CheckpointTuple

from enhanced_checkpointing.backends.contract import Backend, Heads
from enhanced_checkpointing.operations import DeleteThread, Operation, checkpoint_id_of
from enhanced_checkpointing.resilience.breaker import Clock
from enhanced_checkpointing.resilience.deadline import Deadline
from enhanced_checkpointing.resilience.failures import CallFailed, FailureKind
from enhanced_checkpointing.resilience.guard import Guard
from enhanced_checkpointing.serialization import without_objects

UNREADABLE = "unreadable"


class DrainCalls:
    """Every method raises `CallFailed` for what the primary did not do."""

    def __init__(self, backend: Backend, guard: Guard, clock: Clock, seconds: float) -> None:
        self._backend = backend
        self._guard = guard
        self._clock = clock
        self._seconds = seconds

    async def fence(self, thread_id: str) -> bool:
        """End the sessions that writes to a thread were left behind on; False if one still lives."""
        return await self._guard.once("fence", lambda: self._backend.fence(thread_id), deadline=self._deadline())

    async def apply(self, operation: Operation) -> None:
        await self._guard.call(
            "drain",
            lambda: self._backend.apply(operation),
            deadline=self._deadline(),
            subjects=(operation.thread_id,),
            writes=True,
        )

    async def annotate(self, thread_id: str, checkpoint_id: str, changes: Mapping[str, Any]) -> None:
        """Change the metadata of the newest checkpoint of a thread, if it is that one: what others have deleted stays
        deleted, and a thread with which they have gone on is not marked."""
        if await self.head(thread_id, "") != checkpoint_id:
            return
        await self._guard.call(
            "drain",
            lambda: self._backend.annotate(thread_id, changes),
            deadline=self._deadline(),
            subjects=(thread_id,),
            writes=True,
        )

    async def apply_upon(self, heads: Heads, operations: Sequence[Operation]) -> bool:
        """Apply operations of one thread as one step; False if the newest checkpoint is not one of `heads`."""
        try:
            return await self._guard.call(
                "drain",
                lambda: self._backend.apply_all(operations, heads),
                deadline=self._deadline(),
                subjects=(operations[0].thread_id,),
                writes=True,
            )
        except CallFailed as failed:
            if failed.kind is not FailureKind.CONFIGURATION or isinstance(operations[0], DeleteThread):
                raise  # a probe does not delete
            # What a fault of the tables does to these operations, it does to a probe's write.
            await self._guard.once("probe", self._backend.probe, deadline=self._deadline())
            at_fault = replace(failed.failure, kind=FailureKind.DATA)
        raise CallFailed(at_fault) from at_fault.error

    async def find(self, thread_id: str, checkpoint_ns: str, checkpoint_id: str | None) -> CheckpointTuple | None:
        """A checkpoint, without objects of the application: it is looked at, or put as it is into another thread."""
        configurable = {"thread_id": thread_id, "checkpoint_ns": checkpoint_ns}
        if checkpoint_id is not None:
            configurable["checkpoint_id"] = checkpoint_id

        async def find() -> CheckpointTuple | None:
            with without_objects():
                return await self._backend.ask(lambda saver: saver.aget_tuple({"configurable": configurable}))

        return await self._guard.call(
            "drain",
            find,
            deadline=self._deadline(),
            subjects=(thread_id,),
        )

    async def head(self, thread_id: str, checkpoint_ns: str) -> str | None:
        """The newest checkpoint of a namespace."""
        found = await self.find(thread_id, checkpoint_ns, None)
        return checkpoint_id_of(found.config) if found is not None else None

    async def head_if_readable(self, thread_id: str) -> str | None:
        """The newest checkpoint of a thread; of one that nobody can read, a word that is no checkpoint's id."""
        try:
            return await self.head(thread_id, "")
        except CallFailed as failed:
            if not failed.at_fault:
                raise
            return UNREADABLE

    def _deadline(self) -> Deadline:
        return Deadline(self._clock, self._seconds)
