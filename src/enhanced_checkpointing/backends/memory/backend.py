"""Memory as the primary: for development and tests. It is never durable."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from langgraph.checkpoint.memory import InMemorySaver

from enhanced_checkpointing.backends.contract import Backend
from enhanced_checkpointing.backends.directory import HeadQuery, ThreadHead, page_of
from enhanced_checkpointing.backends.memory import reading as memory_reading
from enhanced_checkpointing.backends.memory.saver import MaintainedMemorySaver
from enhanced_checkpointing.backends.reading import Chunks
from enhanced_checkpointing.backends.selection import by_equality
from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.journal.recovery import MEMORY
from enhanced_checkpointing.operations import Operation, apply_shared
from enhanced_checkpointing.resilience.turns import collected
from enhanced_checkpointing.serialization import Serialized, SharingSerializer

NO_VALUE = ("empty", b"")
"""What an `InMemorySaver` keeps of a channel that lost its value."""

BlobKey = tuple[str, str, str, str | int | float]
"""Thread, namespace, channel, version."""


def blob_of(saver: InMemorySaver, key: BlobKey) -> Serialized | None:
    """The bytes of one version of a channel, if a saver holds them."""
    stored = saver.blobs.get(key)
    return Serialized(*stored) if stored is not None and stored[0] != NO_VALUE[0] else None


class MemoryBackend(Backend):
    """LangGraph's `InMemorySaver`; everything is gone when the process ends."""

    name = "memory"
    db_system = "memory"
    reads_everything = True
    selection = staticmethod(by_equality)

    def __init__(self, config: CheckpointerConfig, serializer: SharingSerializer) -> None:
        super().__init__(config, serializer)
        self.saver = self._memory = MaintainedMemorySaver(serde=serializer)
        self.unreadable = self._memory.unreadable

    async def scrub(self) -> Sequence[str]:
        return []

    def home(self) -> str:
        return MEMORY

    def lost_types(self, operation: Operation) -> Collection[str]:
        return ()  # it takes bytes as they are

    async def apply(self, operation: Operation) -> None:
        await apply_shared(self.saver, operation)

    def read_thread(self, thread_id: str) -> Chunks:
        return memory_reading.read_thread(self._memory, self.blob, self.serializer, thread_id)

    async def thread_ids(self, after: str | None, limit: int) -> Sequence[str]:
        if not self._is_bare():
            return await super().thread_ids(after, limit)
        return [one for one in self._memory.thread_ids() if after is None or one > after][: max(0, limit)]

    async def heads(self, query: HeadQuery) -> Sequence[ThreadHead]:
        return page_of(await collected(self._memory.heads()), query) if self._is_bare() else await super().heads(query)

    async def describe(self, thread_ids: Sequence[str]) -> Sequence[ThreadHead]:
        if not self._is_bare():
            return await super().describe(thread_ids)
        return await collected(self._memory.heads(dict.fromkeys(thread_ids)))

    async def annotate(self, thread_id: str, changes: Mapping[str, Any]) -> bool:
        if not self._is_bare():
            return await super().annotate(thread_id, changes)
        return self._memory.annotate(thread_id, changes)

    def _is_bare(self) -> bool:
        """Whether nobody has put another saver, such as one that fails at will, in front of ours."""
        return self.saver is self._memory

    def never_waits(self) -> bool:
        return type(self) is MemoryBackend and self.saver is self._memory

    def blob(self, thread_id: str, checkpoint_ns: str, channel: str, version: str | int | float) -> Serialized | None:
        return blob_of(self._memory, (thread_id, checkpoint_ns, channel, version))
