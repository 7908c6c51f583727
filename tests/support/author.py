"""Writes the history of one namespace as operations, the way LangGraph would hand it to a saver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.base.id import uuid6

from enhanced_checkpointing.operations import Put, PutWrites, accept_put, accept_writes
from enhanced_checkpointing.serialization import SharingSerializer


def config_of(thread_id: str, checkpoint_ns: str = "", checkpoint_id: str | None = None) -> RunnableConfig:
    """A config that names a thread, a namespace and perhaps a checkpoint."""
    configurable = {"thread_id": thread_id, "checkpoint_ns": checkpoint_ns}
    return {"configurable": configurable | ({"checkpoint_id": checkpoint_id} if checkpoint_id else {})}


class Author:
    """Each checkpoint is the child of the one before; only what changed gets a new version."""

    def __init__(
        self, thread_id: str = "thread", checkpoint_ns: str = "", serializer: SharingSerializer | None = None
    ) -> None:
        self.thread_id = thread_id
        self.checkpoint_ns = checkpoint_ns
        self.serializer = serializer or SharingSerializer()
        self.head: str | None = None
        self._step = 0
        self._values: dict[str, Any] = {}
        self._versions: dict[str, str] = {}

    def config(self, checkpoint_id: str | None = None) -> RunnableConfig:
        return config_of(self.thread_id, self.checkpoint_ns, checkpoint_id)

    def put(self, values: Mapping[str, Any], *, bumped: Sequence[str] = ()) -> Put:
        """The next checkpoint; `bumped` channels get a new version without a value, as delta channels do."""
        self._step += 1
        changed = {channel for channel, value in values.items() if self._values.get(channel, self) != value}
        new_versions: dict[str, str | int | float] = dict.fromkeys(sorted({*changed, *bumped}), f"{self._step:032}.0")
        self._versions |= {name: str(version) for name, version in new_versions.items()}
        self._values = dict(values)
        checkpoint = empty_checkpoint()
        checkpoint["id"] = str(uuid6())
        checkpoint["channel_values"] = dict(values)
        checkpoint["channel_versions"] = dict(self._versions)
        parent, self.head = self.head, checkpoint["id"]
        return accept_put(
            self.config(parent),
            checkpoint,
            {"source": "loop", "step": self._step},
            new_versions,
            freeze=self.serializer.freeze,
            known_blob=lambda *_: None,
        )

    def writes(self, *writes: tuple[str, Any], task_id: str = "task", task_path: str = "") -> PutWrites:
        """The writes of one task that belong to the newest checkpoint."""
        return accept_writes(self.config(self.head), writes, task_id, task_path, serializer=self.serializer)
