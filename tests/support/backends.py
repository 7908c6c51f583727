"""Backends opened by themselves, without a manager, and checkpoints put straight into them."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

from langgraph.checkpoint.base import CheckpointMetadata

from enhanced_checkpointing import (
    CheckpointerConfig,
    create_memory_checkpointer,
    create_postgres_checkpointer,
    create_sqlite_checkpointer,
)
from enhanced_checkpointing.backends.base import Backend
from enhanced_checkpointing.backends.registry import find_backend
from enhanced_checkpointing.operations import Put, PutWrites
from enhanced_checkpointing.serialization import Serialized, SharingSerializer

BACKENDS = ("memory", "sqlite", "postgres")
GREGORIAN_TO_UNIX = 0x01B21DD213814000
START = 1_767_225_600
"""2026-01-01T00:00:00Z."""


def config_of(name: str, database_url: str, folder: Path, **fields: Any) -> CheckpointerConfig:
    """A configuration of this kind, over the database or a file in the folder."""
    if name == "postgres":
        return create_postgres_checkpointer(database_url, **fields)
    if name == "sqlite":
        return create_sqlite_checkpointer(str(folder / "checkpoints.sqlite"), **fields)
    return create_memory_checkpointer(**fields)


@asynccontextmanager
async def opened_backend(config: CheckpointerConfig, *, setup: bool = True) -> AsyncIterator[Backend]:
    """The backend of a configuration, open and, unless told otherwise, set up."""
    backend = find_backend(config.backend_name)(config, SharingSerializer(config.serde))
    await backend.open()
    try:
        if setup:
            await backend.setup()
        yield backend
    finally:
        await backend.close()


def checkpoint_id(second: int) -> str:
    """An id as LangGraph makes it, of so many seconds after the start of 2026: they sort as the numbers do."""
    ticks = (START + second) * 10_000_000 + GREGORIAN_TO_UNIX
    return str(uuid.UUID(int=ticks >> 12 << 80 | 6 << 76 | (ticks & 0xFFF) << 64 | 2 << 62))


def put(
    thread_id: str,
    number: int,
    *,
    namespace: str = "",
    parent: int | None = None,
    metadata: Mapping[str, Any] | None = None,
    values: Mapping[str, bytes | str] | None = None,
    without_value: Collection[str] = (),
) -> Put:
    """A checkpoint made so many seconds after the start of 2026; its values are texts, or bytes of msgpack."""
    channels = [*(values or ()), *without_value]
    versions: dict[str, str | int | float] = dict.fromkeys(channels, f"{number:032}.5")
    return Put(
        thread_id=thread_id,
        checkpoint_ns=namespace,
        checkpoint_id=checkpoint_id(number),
        parent_checkpoint_id=checkpoint_id(parent) if parent is not None else None,
        skeleton={
            "v": 4,
            "ts": "2026-01-01T00:00:00+00:00",
            "id": checkpoint_id(number),
            "channel_versions": versions,
            "versions_seen": {},
            "updated_channels": None,
        },
        values={
            channel: data if isinstance(data, str) else Serialized("msgpack", data)
            for channel, data in (values or {}).items()
        },
        metadata=cast("CheckpointMetadata", {"source": "loop", "step": number, **(metadata or {})}),
        new_versions=dict(versions),
    )


def write(thread_id: str, number: int, channel: str, data: bytes, *, namespace: str = "") -> PutWrites:
    """One write to a channel, of a task of the checkpoint with that number."""
    return PutWrites(
        thread_id, namespace, checkpoint_id(number), ((channel, Serialized("msgpack", data)),), str(uuid.uuid4()), "~"
    )
