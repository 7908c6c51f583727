"""Saying of a thread that it is over, or in use: in the metadata of its newest root checkpoint.

A thread that goes on has a newer one, and is active again without anybody's doing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from langchain_core.runnables import RunnableConfig

from enhanced_checkpointing.backends.directory import THREAD_STATUS, TOUCHED_AT
from enhanced_checkpointing.errors import CheckpointNotFoundError, CheckpointUnavailableError, quoted
from enhanced_checkpointing.resilience.failures import cold
from enhanced_checkpointing.saver.maintenance import Maintenance
from enhanced_checkpointing.saver.read_path import Engine
from enhanced_checkpointing.serialization import without_objects
from enhanced_checkpointing.standby.cache import Standby


class Marks:
    """Writes them. All methods run on the manager's event loop."""

    def __init__(
        self,
        engine: Engine,
        maintenance: Maintenance,
        standby: Standby,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._engine = engine
        self._maintenance = maintenance
        self._standby = standby
        self._now = now

    async def mark(self, thread_id: str, status: str) -> None:
        """Mark a thread, now or, in an outage, when the journal is drained. Its time counts from now. It takes two
        deadlines at most: one of the primary, one for the journal.

        Raises:
            CheckpointNotFoundError: there is no such thread.
            CheckpointUnavailableError: neither the primary nor the journal took it.
        """
        changes = {THREAD_STATUS: status, TOUCHED_AT: self._now().isoformat()}
        try:
            found = await self._annotate(thread_id, changes)
        except CheckpointUnavailableError:
            found = await self._put_again(thread_id, changes)
        else:
            await self._warm_again(thread_id)
        if not found:
            raise CheckpointNotFoundError(f"There is no thread {quoted(thread_id)}, so it was not marked as {status}.")

    async def touch(self, thread_id: str, read_at: datetime) -> bool:
        """Write down when a thread was read; False if it is gone.

        Raises:
            CheckpointUnavailableError: there is an outage. This is not worth the journal.
        """
        return await self._annotate(thread_id, {TOUCHED_AT: read_at.isoformat()})

    async def _annotate(self, thread_id: str, changes: Mapping[str, Any]) -> bool:
        found = await self._maintenance.consult(
            "mark", [thread_id], lambda one: one.annotate(thread_id, changes), frozen=True, patience=1
        )
        self._standby.annotate(thread_id, changes)
        return found

    async def _warm_again(self, thread_id: str) -> None:
        # In an outage that has just begun, the mark is made all the same.
        with suppress(CheckpointUnavailableError), without_objects():
            await self._engine.get_tuple(_newest_of(thread_id))

    async def _put_again(self, thread_id: str, changes: Mapping[str, Any]) -> bool:
        """The same as an operation, for the journal: the newest checkpoint as the warm copy has it.

        Behind whatever is on its way: a deletion that comes before it leaves nothing to be marked.
        """
        await self._engine.quiet(thread_id)
        try:
            with without_objects():
                found = self._standby.get_tuple(_newest_of(thread_id))
        except CheckpointUnavailableError as error:
            raise cold(thread_id, error, None) from None
        if found is None:
            return False
        await self._engine.annotate(found, changes)
        return True


def _newest_of(thread_id: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}
