"""Journals on a real disk, and what tests write into them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from enhanced_checkpointing.journal.api import UNKNOWN, BaseHead, Journal, JournalEntry
from enhanced_checkpointing.journal.disk import Disk, RealDisk
from enhanced_checkpointing.journal.durable import DurableJournal
from enhanced_checkpointing.observability.events import Telemetry
from enhanced_checkpointing.operations import DeleteThread, Operation
from enhanced_checkpointing.resilience.deadline import Deadline
from enhanced_checkpointing.serialization import SharingSerializer
from tests.support.recorder import Recorder

CAPACITY = 10_000_000


def durable_journal(
    directory: Path | None = None,
    *,
    disk: Disk | None = None,
    capacity: int = CAPACITY,
    serializer: SharingSerializer | None = None,
    telemetry: Telemetry | None = None,
    **parts: Any,
) -> DurableJournal:
    """A journal that is not open yet, in a directory (`./journal`) or on a disk of any kind."""
    return DurableJournal(
        disk or RealDisk(directory or Path("journal")),
        capacity=capacity,
        serializer=serializer or SharingSerializer(),
        telemetry=telemetry or Recorder(),
        **parts,
    )


@asynccontextmanager
async def opened_journal(directory: Path | None = None, **parts: Any) -> AsyncIterator[DurableJournal]:
    """A journal that is open, and closed at the end."""
    journal = durable_journal(directory, **parts)
    await journal.open()
    try:
        yield journal
    finally:
        await journal.close()


def soon(seconds: float = 5.0) -> Deadline:
    return Deadline(time.monotonic, seconds)


async def add(
    journal: Journal,
    operation: Operation | str,
    base_head: BaseHead = UNKNOWN,
    seconds: float = 5.0,
) -> JournalEntry:
    """Append an operation, or the deletion of a thread."""
    if isinstance(operation, str):
        operation = DeleteThread(operation)
    return await journal.append(operation, base_head, soon(seconds))


async def operations_in(journal: Journal, thread_id: str) -> list[Operation]:
    """What is pending of a thread, read back."""
    return [record.operation for record in await journal.read(journal.entries(thread_id))]
