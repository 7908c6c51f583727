"""One thread that is written checkpoint by checkpoint, and what the primary has of it in the end."""

from __future__ import annotations

import time
from typing import Any, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    empty_checkpoint,
)
from langgraph.checkpoint.base.id import uuid6


class Thread:
    """Puts checkpoints that form a chain; `ids` are those that were acknowledged, oldest first."""

    def __init__(self, saver: BaseCheckpointSaver[str], thread_id: str) -> None:
        self._saver = saver
        self.thread_id = thread_id
        self.ids: list[str] = []
        self._profile_version = saver.get_next_version(None, None)
        self._count_version: str | None = None

    @property
    def config(self) -> RunnableConfig:
        """Asks for the newest checkpoint."""
        return {"configurable": {"thread_id": self.thread_id, "checkpoint_ns": ""}}

    def go_on_from(self, other: Thread) -> None:
        """Continue where another one is, as another process does that works on the same thread."""
        self.ids, self._count_version = list(other.ids), other._count_version
        self._profile_version = other._profile_version

    async def put(self, **metadata: Any) -> RunnableConfig:
        """Put the next checkpoint: the channel `count` changes each time, `profile` never after the first."""
        first = self._count_version is None
        self._count_version = self._saver.get_next_version(self._count_version, None)
        versions: ChannelVersions = {"count": self._count_version, "profile": self._profile_version}
        checkpoint = Checkpoint(
            v=4,
            id=str(uuid6(clock_seq=len(self.ids))),
            ts="2026-01-01T00:00:00+00:00",
            channel_values={"count": [len(self.ids)], "profile": ["Ada"]},
            channel_versions=dict(versions),
            versions_seen={},
            updated_channels=None,
        )
        config: RunnableConfig = {"configurable": {"thread_id": self.thread_id, "checkpoint_ns": ""}}
        if self.ids:
            config["configurable"]["checkpoint_id"] = self.ids[-1]
        new: ChannelVersions = versions if first else {"count": self._count_version}
        whole_metadata = cast("CheckpointMetadata", {"source": "loop", "step": len(self.ids), **metadata})
        stored = await self._saver.aput(config, checkpoint, whole_metadata, new)
        self.ids.append(checkpoint["id"])
        return stored

    async def put_values(self, values: dict[str, Any], **metadata: Any) -> RunnableConfig:
        """Put a first checkpoint with these values."""
        version = self._saver.get_next_version(None, None)
        versions: ChannelVersions = dict.fromkeys(values, version)
        checkpoint = empty_checkpoint()
        checkpoint |= {"id": str(uuid6()), "channel_values": values, "channel_versions": dict(versions)}
        self.ids.append(checkpoint["id"])
        whole_metadata = cast("CheckpointMetadata", {"source": "loop", "step": 0, **metadata})
        return await self._saver.aput(self.config, checkpoint, whole_metadata, versions)

    async def put_writes(self, task_id: str, value: Any = "written") -> None:
        """Put one write on the newest checkpoint."""
        await self._saver.aput_writes(
            {"configurable": {**self.config["configurable"], "checkpoint_id": self.ids[-1]}},
            [("count", value)],
            task_id,
        )

    async def timed_put(self) -> float:
        """Put the next checkpoint and return the seconds that took."""
        started_at = time.perf_counter()
        await self.put()
        return time.perf_counter() - started_at

    async def timed_get(self) -> float:
        """Read the newest checkpoint, which must be the last one put, and return the seconds that took."""
        started_at = time.perf_counter()
        found = await self._saver.aget_tuple(self.config)
        seconds = time.perf_counter() - started_at
        assert found is not None
        assert found.checkpoint["id"] == self.ids[-1]
        assert found.checkpoint["channel_values"] == {"count": [len(self.ids) - 1], "profile": ["Ada"]}
        return seconds

    async def stored(self) -> list[CheckpointTuple]:
        """What the saver lists of this thread, oldest first."""
        return [found async for found in self._saver.alist(self.config)][::-1]

    async def stored_ids(self) -> list[str]:
        return [found.checkpoint["id"] for found in await self.stored()]

    async def stored_parents(self) -> list[str | None]:
        return [
            found.parent_config["configurable"]["checkpoint_id"] if found.parent_config else None
            for found in await self.stored()
        ]
