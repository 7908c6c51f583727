"""Memory as the primary: what it spares, as it needs nothing to fall back on."""

from __future__ import annotations

from typing import Any

from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from enhanced_checkpointing import EnhancedCheckpointerManager, create_memory_checkpointer
from tests.support.checkpoints import Thread


class Noting(JsonPlusSerializer):
    """Tells what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Any] = []

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        self.given.append(obj)
        return super().dumps_typed(obj)


async def test_memory_has_no_warm_copy_and_no_value_is_turned_into_bytes_twice() -> None:
    serializer = Noting()
    async with EnhancedCheckpointerManager(create_memory_checkpointer(serde=serializer)) as manager:
        saver = manager.get_checkpointer()
        assert saver is not None
        thread = Thread(saver, "thread")
        for _ in range(3):
            await thread.put()
        found = await saver.aget_tuple(thread.config)
        assert found is not None
        assert found.checkpoint["channel_values"] == {"count": [2], "profile": ["Ada"]}
        assert serializer.given.count(["Ada"]) == 1
        assert [serializer.given.count([count]) for count in range(3)] == [1, 1, 1]
        assert manager.health_status["fallback_checkpointer"]["warm_threads"] == 0
