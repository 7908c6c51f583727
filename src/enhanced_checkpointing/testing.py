"""For your own tests: make the primary of a manager fail, hang and heal, and let time pass without waiting.

manager = await initialize_enhanced_checkpointing(custom_config=create_memory_checkpointer())
primary = make_flaky(manager)
primary.fail_with(ConnectionRefusedError("the database is down"))
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from copy import copy
from dataclasses import dataclass, field
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
)

from enhanced_checkpointing.backends.postgres.backend import PostgresBackend
from enhanced_checkpointing.backends.sqlite.backend import SqliteBackend
from enhanced_checkpointing.errors import CheckpointerError
from enhanced_checkpointing.manager import EnhancedCheckpointerManager
from enhanced_checkpointing.operations import operations_of, thread_of

__all__ = ["FakeClock", "FlakySaver", "make_flaky"]


class FakeClock:
    """A clock that stands still until it is told to advance; it starts at `seconds`."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds = seconds

    def __call__(self) -> float:
        return self._seconds

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass."""
        self._seconds += seconds


@dataclass(slots=True)
class _Fault:
    """What every call meets now; shared by the copies of a saver."""

    error: BaseException | None = None
    hanging: Future[None] | None = None
    calls: Counter[str] = field(default_factory=Counter)

    def meet(self) -> Future[None] | None:
        """Raise what a call is to fail with, or return what it is to wait for."""
        if self.error is not None:
            raise self.error.with_traceback(None)
        return self.hanging


class FlakySaver(BaseCheckpointSaver[Any]):
    """A saver in front of another one, whose calls can be made to fail or to hang; nothing reaches the inner one then.

    What an error means is for the backend to say: for the memory backend `ConnectionRefusedError` is an outage,
    `TimeoutError` an unknown outcome, and any other than an `OSError` the caller's own fault. May be used from any
    thread.
    """

    def __init__(self, inner: BaseCheckpointSaver[Any]) -> None:
        super().__init__(serde=inner.serde)
        self.inner = inner
        self._fault = _Fault()

    @property
    def calls(self) -> Counter[str]:
        """How often each method was called, by its name, those that failed included."""
        return self._fault.calls

    def fail_with(self, error: BaseException) -> None:
        """From now on every call raises `error`, those that hang too."""
        self._now(error=error)

    def hang(self) -> None:
        """From now on every call waits until `heal()` or `fail_with()`; one that is cancelled meanwhile ends there."""
        self._now(hanging=self._fault.hanging or Future())

    def heal(self) -> None:
        """From now on calls reach the inner saver, those that hang too."""
        self._now()

    def _now(self, *, error: BaseException | None = None, hanging: Future[None] | None = None) -> None:
        before, self._fault.hanging, self._fault.error = self._fault.hanging, hanging, error
        if before is not None and before is not hanging:
            before.set_result(None)

    async def _arrive(self, method: str) -> None:
        self.calls[method] += 1
        while (hanging := self._fault.meet()) is not None:
            # Shielded: the one future is what all calls wait for, and one that is cancelled must not end it for all.
            await asyncio.shield(asyncio.wrap_future(hanging))

    def _arrive_here(self, method: str) -> None:
        self.calls[method] += 1
        while (hanging := self._fault.meet()) is not None:
            hanging.result()

    # Asynchronous

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        await self._arrive("aget_tuple")
        return await self.inner.aget_tuple(config)

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        await self._arrive("alist")
        async for found in self.inner.alist(config, filter=filter, before=before, limit=limit):
            yield found

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        await self._arrive("aput")
        return await self.inner.aput(config, checkpoint, metadata, new_versions)

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        await self._arrive("aput_writes")
        await self.inner.aput_writes(config, writes, task_id, task_path)

    async def adelete_thread(self, thread_id: str) -> None:
        await self._arrive("adelete_thread")
        await self.inner.adelete_thread(thread_id)

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        await self._arrive("adelete_for_runs")
        await self.inner.adelete_for_runs(run_ids)

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        await self._arrive("acopy_thread")
        await self.inner.acopy_thread(source_thread_id, target_thread_id)

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        await self._arrive("aprune")
        await self.inner.aprune(thread_ids, strategy=strategy)

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        await self._arrive("aget_delta_channel_history")
        return await self.inner.aget_delta_channel_history(config=config, channels=channels)

    # Synchronous

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        self._arrive_here("get_tuple")
        return self.inner.get_tuple(config)

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        self._arrive_here("list")
        yield from self.inner.list(config, filter=filter, before=before, limit=limit)

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        self._arrive_here("put")
        return self.inner.put(config, checkpoint, metadata, new_versions)

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        self._arrive_here("put_writes")
        self.inner.put_writes(config, writes, task_id, task_path)

    def delete_thread(self, thread_id: str) -> None:
        self._arrive_here("delete_thread")
        self.inner.delete_thread(thread_id)

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        self._arrive_here("delete_for_runs")
        self.inner.delete_for_runs(run_ids)

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        self._arrive_here("copy_thread")
        self.inner.copy_thread(source_thread_id, target_thread_id)

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        self._arrive_here("prune")
        self.inner.prune(thread_ids, strategy=strategy)

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        self._arrive_here("get_delta_channel_history")
        return self.inner.get_delta_channel_history(config=config, channels=channels)

    # Without a call of the database

    def get_next_version(self, current: Any, channel: None) -> Any:
        return self.inner.get_next_version(current, channel)

    def with_allowlist(self, extra_allowlist: Collection[tuple[str, ...]]) -> FlakySaver:
        """A copy that may read more types; it fails, hangs and heals together with this one."""
        clone = copy(self)
        clone.inner = self.inner.with_allowlist(extra_allowlist)
        clone.serde = clone.inner.serde
        return clone


def make_flaky(manager: EnhancedCheckpointerManager) -> FlakySaver:
    """Put a `FlakySaver` in front of the primary of an open manager, and return it; again returns the same one.

    Raises:
        CheckpointerError: the manager is not open, or its primary has connections that must fail for real.
    """
    backend = manager.components.backend
    if isinstance(backend, (SqliteBackend, PostgresBackend)):
        raise CheckpointerError(
            f"The {backend.name} primary works on connections of its own, past any saver in front of it, so its faults "
            "must be real: stop the server, or lock the file. make_flaky() is for create_memory_checkpointer() and for "
            "backends of your own. Nothing was changed."
        )
    if not isinstance(backend.saver, FlakySaver):
        if backend.never_waits():
            _warm_up(manager)
        backend.saver = FlakySaver(backend.saver)
    return backend.saver


def _warm_up(manager: EnhancedCheckpointerManager) -> None:
    """Let the warm copy be as if it had been kept all the time, which it is not of memory, as that cannot fail."""
    parts = manager.components
    oldest_first = sorted(parts.backend.saver.list(None), key=lambda found: str(found.checkpoint["id"]))
    for thread_id in {thread_of(found.config) for found in oldest_first}:
        parts.standby.forget(thread_id)
        parts.standby.note_empty(thread_id, "")
    for found in oldest_first:
        for operation in operations_of(found, parts.backend.serializer):
            parts.standby.keep(operation)
