"""The saver that LangGraph sees. It holds only a reference to the engine, for LangGraph copies it."""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from functools import wraps
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
from enhanced_checkpointing.identifiers import USER_ID, before_with_text_id, text_of, with_text_ids, with_text_user
from enhanced_checkpointing.ownership import ASKED_BY, OWNER, SHARED_WITH, user_in, without_ownership
from enhanced_checkpointing.saver.event_loop import LoopBridge
from enhanced_checkpointing.saver.maintenance import Maintenance
from enhanced_checkpointing.saver.owner_check import OwnerCheck
from enhanced_checkpointing.saver.read_path import Engine
from enhanced_checkpointing.serialization import SharingSerializer, widen_allowlist


class FailoverSaver(BaseCheckpointSaver[str]):
    """A `BaseCheckpointSaver` that keeps working while its primary fails.

    Every method raises `CheckpointUnavailableError` where the answer is not known now, and returns `None` only for a
    thread that is known to be empty. Each sync method is the counterpart of an async one, of which it waits for the end
    from any other thread than that of the manager's event loop; below is the table of them.
    """

    def __init__(
        self,
        engine: Engine,
        owners: OwnerCheck,
        maintenance: Maintenance,
        bridge: LoopBridge,
        serializer: SharingSerializer,
        note: Notes,
    ) -> None:
        super().__init__(serde=serializer.inner)
        self._engine = engine
        self._writes = engine.writes
        self._owners = owners
        self._maintenance = maintenance
        self._bridge = bridge
        self._serializer = serializer
        self._note = note

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        asked = with_text_ids(config)
        if self._bridge.here is asyncio.get_running_loop() and self._asks_nobody(asked):
            owners, changes = self._owners, self._owners.changes
            found = await self._engine.get_tuple(asked)
            if found is None or OWNER not in found.metadata:
                known = asked["configurable"]["thread_id"] in owners.without_owner
                if changes == owners.changes and (not known or "checkpoint_id" in asked["configurable"]):
                    owners.note_without_owner(asked)
                return found
            return await self._owners.judged(asked, found, None)
        return await self._bridge.bring(self._owners.get_tuple, asked)

    def _asks_nobody(self, config: RunnableConfig) -> bool:
        """Whether a call is in the name of no user, and about a thread of which no owner is known: nearly always, where
        an application has no owners, and then its calls go on without the check."""
        asked = config["configurable"]
        return ASKED_BY not in asked and asked["thread_id"] not in self._owners.known and not self._owners.erased

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
            answer = await self._bridge.bring(self._owners.list, one, filter, before, limit)
        else:
            user = user_in(config) if config is not None else None
            most = limit if user is None else None
            answer = await self._bridge.bring(self._maintenance.list, filter, before, most)
            answer = (await self._bridge.bring(self._owners.shown, answer, user))[:limit]
        for found in answer:
            yield found

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        config = with_text_ids(config)
        if USER_ID in metadata:
            metadata = cast("CheckpointMetadata", with_text_user(metadata))
        if config.get("metadata"):
            config = {**config, "metadata": dict(with_text_user(config["metadata"]))}
        if (checkpoint_id := text_of(checkpoint["id"], "checkpoint_id")) is not checkpoint["id"]:
            checkpoint = {**checkpoint, "id": checkpoint_id}
        for said in (metadata, config["configurable"], config.get("metadata") or ()):
            if OWNER in said or SHARED_WITH in said:
                config, metadata = without_ownership(config, metadata)
        known = config["configurable"]["thread_id"] in self._owners.without_owner
        if known and self._bridge.here is asyncio.get_running_loop() and self._asks_nobody(config):
            return await self._writes.put(config, checkpoint, metadata, new_versions)
        return await self._bridge.bring(self._owners.put, config, checkpoint, metadata, new_versions)

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        config, task_id = with_text_ids(config), text_of(task_id, "task_id")
        if self._bridge.here is asyncio.get_running_loop() and self._asks_nobody(config):
            await self._writes.put_writes(config, writes, task_id, task_path)
        else:
            await self._bridge.bring(self._owners.put_writes, config, writes, task_id, task_path)

    async def adelete_thread(self, thread_id: str) -> None:
        thread_id = text_of(thread_id, "thread_id")
        await self._bridge.bring(self._owners.delete_thread, thread_id)
        await self._bridge.bring(lambda: self._note("delete", threads=[thread_id]))

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        if not channels:
            return {}
        asked = with_text_ids(config)
        return await self._bridge.bring(self._owners.delta_history, asked, channels)

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
        lambda: self._maintenance.change(
            "delete_for_runs", None, lambda backend: backend.ask(lambda saver: saver.adelete_for_runs(run_ids))
        )
    )
    await self._bridge.bring(lambda: self._note("delete for runs", runs=named(run_ids)))


async def _copy_thread(self: FailoverSaver, source_thread_id: str, target_thread_id: str) -> None:
    source, target = text_of(source_thread_id, "source_thread_id"), text_of(target_thread_id, "target_thread_id")
    await self._bridge.bring(
        lambda: self._maintenance.change(
            "copy_thread",
            [target],
            lambda backend: backend.ask(lambda saver: saver.acopy_thread(source, target)),
            source=source,
        )
    )


async def _prune(self: FailoverSaver, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
    if isinstance(thread_ids, str):
        raise TypeError("thread_ids must be a sequence of thread IDs, not a str")
    thread_ids = [text_of(thread_id, "thread_id") for thread_id in thread_ids]
    await self._bridge.bring(
        lambda: self._maintenance.change(
            "prune", thread_ids, lambda backend: backend.ask(lambda saver: saver.aprune(thread_ids, strategy=strategy))
        )
    )
    await self._bridge.bring(lambda: self._note(f"prune {strategy}", threads=thread_ids))


def _counterpart(name: str, asynchronous: Callable[..., Any]) -> Callable[..., Any]:
    """The sync method of this name, with the parameters of the async one."""

    @wraps(asynchronous)
    def method(self: FailoverSaver, *arguments: Any, **named: Any) -> Any:
        return self._bridge.wait(lambda: asynchronous(self, *arguments, **named))

    method.__name__, method.__qualname__ = name, f"FailoverSaver.{name}"
    return method


_SYNC = "get_tuple", "put", "put_writes", "delete_thread", "get_delta_channel_history"
"""The sync methods that every saver has, each the counterpart of `a…`. A listing, which is an iterator, is none."""

for _name in _SYNC:
    setattr(FailoverSaver, _name, _counterpart(_name, getattr(FailoverSaver, f"a{_name}")))

_MAINTENANCE: dict[str, Callable[..., Any]] = {
    "delete_for_runs": _delete_for_runs,
    "copy_thread": _copy_thread,
    "prune": _prune,
}


def saver_class_for(primary: type[BaseCheckpointSaver[Any]]) -> type[FailoverSaver]:
    """The saver class with just those maintenance methods that the primary's saver has.

    LangGraph tells a saver's capabilities by the methods its class overrides, so a method that could only raise
    `NotImplementedError` must not be there.
    """
    methods: dict[str, Callable[..., Any]] = {}
    for name, asynchronous in _MAINTENANCE.items():
        if getattr(primary, f"a{name}") is not getattr(BaseCheckpointSaver, f"a{name}"):
            methods |= {name: _counterpart(name, asynchronous), f"a{name}": asynchronous}
    return type("FailoverSaver", (FailoverSaver,), methods) if methods else FailoverSaver
