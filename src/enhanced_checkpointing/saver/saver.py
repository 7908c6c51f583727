"""The saver that LangGraph sees. It holds only a reference to the engine, for LangGraph copies it."""

from __future__ import annotations

import copy
import random
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from typing import Any, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
)

from enhanced_checkpointing.audit import Notes, named
from enhanced_checkpointing.identifiers import before_with_text_id, text_of, with_text_ids, with_text_user
from enhanced_checkpointing.ownership import user_in
from enhanced_checkpointing.saver.event_loop import LoopBridge, SyncMethods
from enhanced_checkpointing.saver.maintenance import Maintenance
from enhanced_checkpointing.saver.owner_check import OwnerCheck
from enhanced_checkpointing.serialization import SharingSerializer, widen_allowlist


class FailoverSaver(SyncMethods):
    """A `BaseCheckpointSaver` that keeps working while its primary fails.

    Every method raises `CheckpointUnavailableError` where the answer is not known now, and returns `None` only for a
    thread that is known to be empty.
    """

    def __init__(
        self,
        threads: OwnerCheck,
        maintenance: Maintenance,
        bridge: LoopBridge,
        serializer: SharingSerializer,
        note: Notes,
    ) -> None:
        super().__init__(serde=serializer.inner)
        self._threads = threads
        self._maintenance = maintenance
        self._bridge = bridge
        self._serializer = serializer
        self._note = note

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        asked = with_text_ids(config)
        return await self._bridge.bring(self._threads.get_tuple, asked)

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """All matching checkpoints, newest first. They are fetched before the first is given, so that a listing is
        complete or an error, never a part that looks like the whole."""
        before = before_with_text_id(before)
        if config is not None and "thread_id" in config.get("configurable", {}):
            one = with_text_ids(config)
            if config["configurable"].get("checkpoint_ns", "") is None:  # in a listing that is every namespace
                one = cast("RunnableConfig", {**one, "configurable": {**one["configurable"], "checkpoint_ns": None}})
            answer = await self._bridge.bring(self._threads.list, one, filter, before, limit)
        else:
            user = user_in(config) if config is not None else None
            most = limit if user is None else None
            answer = await self._bridge.bring(self._maintenance.list, filter, before, most)
            answer = (await self._bridge.bring(self._threads.shown, answer, user))[:limit]
        for found in answer:
            yield found

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        config, metadata = with_text_ids(config), cast("CheckpointMetadata", with_text_user(metadata))
        if config.get("metadata"):
            config = {**config, "metadata": dict(with_text_user(config["metadata"]))}
        if (checkpoint_id := text_of(checkpoint["id"], "checkpoint_id")) is not checkpoint["id"]:
            checkpoint = {**checkpoint, "id": checkpoint_id}
        return await self._bridge.bring(self._threads.put, config, checkpoint, metadata, new_versions)

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        task_id = text_of(task_id, "task_id")
        await self._bridge.bring(self._threads.put_writes, with_text_ids(config), writes, task_id, task_path)

    async def adelete_thread(self, thread_id: str) -> None:
        thread_id = text_of(thread_id, "thread_id")
        await self._bridge.bring(self._threads.delete_thread, thread_id)
        await self._bridge.bring(lambda: self._note("delete", threads=[thread_id]))

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        if not channels:
            return {}
        asked = with_text_ids(config)
        return await self._bridge.bring(self._threads.delta_history, asked, channels)

    def get_next_version(self, current: str | int | float | None, channel: None = None) -> str:
        """The version scheme that memory, SQLite and PostgreSQL share; a thread with integer versions goes on in it."""
        number = int(str(current).split(".")[0]) if current is not None else 0
        return f"{number + 1:032}.{random.random():016}"

    def with_allowlist(self, extra_allowlist: Collection[tuple[str, ...]]) -> BaseCheckpointSaver[str]:
        """A copy that may read more types; the inner savers, the standby and the journal may read them too."""
        serde = widen_allowlist(self._serializer, extra_allowlist)
        if serde is self.serde:
            return self
        clone = copy.copy(self)
        clone.serde = serde
        return clone


async def _delete_for_runs(self: FailoverSaver, run_ids: Sequence[str]) -> None:
    run_ids = [text_of(run_id, "run_id") for run_id in run_ids]
    await self._bridge.bring(
        lambda: self._maintenance.change("delete_for_runs", None, lambda saver: saver.adelete_for_runs(run_ids))
    )
    await self._bridge.bring(lambda: self._note("delete for runs", runs=named(run_ids)))


async def _copy_thread(self: FailoverSaver, source_thread_id: str, target_thread_id: str) -> None:
    source, target = text_of(source_thread_id, "source_thread_id"), text_of(target_thread_id, "target_thread_id")
    await self._bridge.bring(
        lambda: self._maintenance.change(
            "copy_thread", [target], lambda saver: saver.acopy_thread(source, target), source=source
        )
    )


async def _prune(self: FailoverSaver, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
    if isinstance(thread_ids, str):
        raise TypeError("thread_ids must be a sequence of thread IDs, not a str")
    thread_ids = [text_of(thread_id, "thread_id") for thread_id in thread_ids]
    await self._bridge.bring(
        lambda: self._maintenance.change("prune", thread_ids, lambda saver: saver.aprune(thread_ids, strategy=strategy))
    )
    await self._bridge.bring(lambda: self._note(f"prune {strategy}", threads=thread_ids))


def _sync_delete_for_runs(self: FailoverSaver, run_ids: Sequence[str]) -> None:
    self._bridge.wait(lambda: _delete_for_runs(self, run_ids))


def _sync_copy_thread(self: FailoverSaver, source_thread_id: str, target_thread_id: str) -> None:
    self._bridge.wait(lambda: _copy_thread(self, source_thread_id, target_thread_id))


def _sync_prune(self: FailoverSaver, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
    self._bridge.wait(lambda: _prune(self, thread_ids, strategy=strategy))


_MAINTENANCE: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "delete_for_runs": (_sync_delete_for_runs, _delete_for_runs),
    "copy_thread": (_sync_copy_thread, _copy_thread),
    "prune": (_sync_prune, _prune),
}


def saver_class_for(primary: type[BaseCheckpointSaver[Any]]) -> type[FailoverSaver]:
    """The saver class with just those maintenance methods that the primary's saver has.

    LangGraph tells a saver's capabilities by the methods its class overrides, so a method that could only raise
    `NotImplementedError` must not be there.
    """
    methods: dict[str, Callable[..., Any]] = {}
    for name, (sync_method, async_method) in _MAINTENANCE.items():
        if getattr(primary, f"a{name}") is not getattr(BaseCheckpointSaver, f"a{name}"):
            methods |= {name: sync_method, f"a{name}": async_method}
    return type("FailoverSaver", (FailoverSaver,), methods) if methods else FailoverSaver
