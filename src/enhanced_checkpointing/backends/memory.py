"""Memory as the primary: for development and tests. It is never durable."""

from __future__ import annotations

from langgraph.checkpoint.memory import InMemorySaver

from enhanced_checkpointing.backends.contract import Backend
from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.journal.inheritance import MEMORY
from enhanced_checkpointing.operations import Operation, apply_shared
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

    def __init__(self, config: CheckpointerConfig, serializer: SharingSerializer) -> None:
        super().__init__(config, serializer)
        self.saver = self._memory = InMemorySaver(serde=serializer)

    def home(self) -> str:
        return MEMORY

    async def apply(self, operation: Operation) -> None:
        await apply_shared(self.saver, operation)

    def never_waits(self) -> bool:
        return type(self) is MemoryBackend and self.saver is self._memory

    def blob(self, thread_id: str, checkpoint_ns: str, channel: str, version: str | int | float) -> Serialized | None:
        return blob_of(self._memory, (thread_id, checkpoint_ns, channel, version))
