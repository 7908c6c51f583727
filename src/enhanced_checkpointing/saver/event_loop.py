"""Calls from anywhere: every sync method with one guard for all of them, and async calls from other event loops."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
)

from enhanced_checkpointing.errors import CheckpointerError

T = TypeVar("T")
P = ParamSpec("P")
Call = Callable[[], Coroutine[Any, Any, T]]


class LoopBridge:
    """Carries calls into the event loop on which a manager lives."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._process_id = os.getpid()
        self._closed = False

    def close(self) -> None:
        """Refuse all further calls."""
        self._closed = True

    def bring(self, call: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **named: P.kwargs) -> Awaitable[T]:
        """Call on the manager's loop, from whichever loop is running; to be awaited at once.

        Raises:
            CheckpointerError: the manager is closed, its loop has ended, or this is a forked child.
        """
        if not self._closed and _running_loop() is self._loop:  # which it is in no forked child: asyncio sees to that
            return call(*args, **named)
        self._check()
        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call(*args, **named), self._loop))

    def wait(self, call: Call[T]) -> T:
        """Run `call()` on the manager's loop and wait for it, from any other thread.

        Raises:
            CheckpointerError: this thread runs the manager's loop, so that waiting would never end; or as `bring`.
        """
        self._check()
        if _running_loop() is self._loop:
            raise CheckpointerError(
                "A synchronous call of the checkpointer on the thread of its own event loop would wait for itself for "
                "ever; nothing was read or written. Use the async method (`await graph.ainvoke(…)`), call from "
                "another thread (`await asyncio.to_thread(graph.invoke, …)`), or give the manager a loop of its own "
                "with enable_async=False."
            )
        future = asyncio.run_coroutine_threadsafe(call(), self._loop)
        try:
            return future.result()
        finally:
            future.cancel()  # only if this thread was interrupted while it waited

    def _check(self) -> None:
        if os.getpid() != self._process_id:
            raise CheckpointerError(
                "This process was forked after the checkpointer was started, and neither connections nor event loops "
                "survive a fork; nothing was read or written. Call initialize_enhanced_checkpointing() in the child."
            )
        if self._closed or not self._loop.is_running():
            raise CheckpointerError(
                "The checkpointer is closed, or its event loop has ended; nothing was read or written. Keep the "
                "manager open for as long as graphs run, and call cleanup() after them."
            )


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class SyncMethods(BaseCheckpointSaver[str]):
    """The sync half of the saver: each method waits for its async twin."""

    _bridge: LoopBridge

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        return self._bridge.wait(lambda: self.aget_tuple(config))

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        async def fetch() -> Sequence[CheckpointTuple]:
            return [found async for found in self.alist(config, filter=filter, before=before, limit=limit)]

        yield from self._bridge.wait(fetch)

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        return self._bridge.wait(lambda: self.aput(config, checkpoint, metadata, new_versions))

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        self._bridge.wait(lambda: self.aput_writes(config, writes, task_id, task_path))

    def delete_thread(self, thread_id: str) -> None:
        self._bridge.wait(lambda: self.adelete_thread(thread_id))

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        return self._bridge.wait(lambda: self.aget_delta_channel_history(config=config, channels=channels))
