"""Whole threads for tests that move them: written through official savers, and read back for a comparison."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, Checkpoint, CheckpointTuple
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.types import Interrupt, Send

from enhanced_checkpointing.backends.base import Backend
from enhanced_checkpointing.backends.registry import find_backend
from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.serialization import SharingSerializer

Saver = BaseCheckpointSaver[Any]
Shown = list[dict[str, Any]]
"""Every checkpoint of a thread as a saver shows it, values by their bytes."""

SPECIAL = ("__interrupt__", "__resume__", "__error__", "__scheduled__")


@dataclass
class Step:
    """One checkpoint and what is written upon it, call by call: task, path, writes."""

    values: dict[str, Any]
    metadata: dict[str, Any] = field(default_factory=dict)
    calls: Sequence[tuple[str, str, Sequence[tuple[str, Any]]]] = ()
    forks: bool = False
    """Whether its parent is not the checkpoint before, but the one before that."""


# Without NUL, which PostgreSQL does not take, and backslashes, with which its official saver cannot read a channel.
names = st.text(st.characters(exclude_characters="\0\\", exclude_categories=["Cs"]), min_size=1, max_size=8)
numbers = st.integers(-(2**63), 2**64 - 1) | st.floats()
leaves = st.none() | st.booleans() | numbers | st.text(st.characters(exclude_categories=["Cs"])) | st.binary(max_size=9)
odd = leaves | st.builds(HumanMessage, names) | st.builds(AIMessage, names) | st.builds(Send, names, leaves)
values = st.recursive(
    odd,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(names, inner, max_size=3)
        | st.sets(names, max_size=2)
        | st.tuples(inner)
    ),
    max_leaves=5,
)
# PostgreSQL has no negative zero, and gives floats from 1e16 on back as integers.
documents = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(-1e9, 1e9).map(lambda number: number + 0.0)
    | names,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=2),
    max_leaves=4,
)
interrupts = st.builds(lambda value, key: (Interrupt(value=value, id=key),), names, names)
writes = st.lists(
    st.tuples(names, values) | st.tuples(st.sampled_from(SPECIAL), interrupts | names), min_size=1, max_size=3
)
steps = st.builds(
    Step,
    st.dictionaries(names, values, max_size=3),
    st.dictionaries(names | st.just("writes"), documents, max_size=3),
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["", "~x"]), writes), max_size=3),
    st.booleans(),
)
threads = st.dictionaries(st.just("") | names, st.lists(steps, min_size=1, max_size=3), min_size=1, max_size=2)


async def write_thread(saver: Saver, thread_id: str, namespaces: dict[str, list[Step]]) -> None:
    """Write a thread through a saver's own methods, as LangGraph would: unchanged channels keep their version."""
    for namespace, listed in namespaces.items():
        ids: list[str] = []
        versions: dict[str, Any] = {}
        before: dict[str, Any] = {}
        for number, step in enumerate(listed):
            changed = {name for name, value in step.values.items() if name not in before or before[name] is not value}
            new = {name: saver.get_next_version(versions.get(name), None) for name in sorted(changed)}
            versions, before = {**versions, **new}, step.values
            for name in [name for name in versions if name not in step.values and name not in new]:
                versions[name] = new[name] = saver.get_next_version(versions[name], None)  # its value is gone
            checkpoint: Checkpoint = {
                "v": 4,
                "ts": "2026-01-01T00:00:00+00:00",
                "id": str(uuid6(clock_seq=number)),
                "channel_values": step.values,
                "channel_versions": dict(versions),
                "versions_seen": {"node": dict(versions)},
                "updated_channels": sorted(new),
            }
            configurable: dict[str, Any] = {"thread_id": thread_id, "checkpoint_ns": namespace}
            if parent := ids[-2:][0] if step.forks and ids else ids[-1] if ids else None:
                configurable["checkpoint_id"] = parent
            metadata: Any = {"source": "loop", "step": number, **step.metadata}
            stored = await saver.aput({"configurable": configurable}, checkpoint, metadata, new)
            ids.append(checkpoint["id"])
            for task_id, task_path, call in step.calls:
                await saver.aput_writes(stored, call, task_id, task_path)


async def shown(saver: Saver, thread_id: str) -> Shown:
    """A thread through a saver: documents with their keys in order, values and writes as bytes."""
    config: RunnableConfig = {"configurable": {"thread_id": thread_id}}
    return sorted([_plain(found) async for found in saver.alist(config)], key=lambda one: str(one["config"]))


def _plain(found: CheckpointTuple) -> dict[str, Any]:
    pack = JsonPlusSerializer().dumps_typed
    values = found.checkpoint["channel_values"]
    return {
        "config": sorted(found.config["configurable"].items()),
        "parent": found.parent_config and sorted(found.parent_config["configurable"].items()),
        "checkpoint": _document({name: part for name, part in found.checkpoint.items() if name != "channel_values"}),
        "values": {name: pack(values[name]) for name in sorted(values)},
        "metadata": _document(found.metadata),
        "writes": [(task_id, channel, pack(value)) for task_id, channel, value in found.pending_writes or ()],
    }


def _document(document: Any) -> str:
    return json.dumps(document, sort_keys=True)


@asynccontextmanager
async def bare_sqlite(path: Path | str) -> AsyncIterator[Saver]:
    """LangGraph's own saver on a file."""
    async with AsyncSqliteSaver.from_conn_string(str(path)) as saver:
        await saver.setup()
        yield saver


@asynccontextmanager
async def bare_postgres(url: str) -> AsyncIterator[Saver]:
    """LangGraph's own saver on a server."""
    async with AsyncPostgresSaver.from_conn_string(url) as saver:
        await saver.setup()
        yield saver


@asynccontextmanager
async def backend_of(config: CheckpointerConfig, serializer: SharingSerializer | None = None) -> AsyncIterator[Backend]:
    """The backend of a configuration, open, with its tables."""
    backend = find_backend(config.backend_name)(config, serializer or SharingSerializer(config.serde))
    try:
        await backend.open()
        await backend.setup()
        yield backend
    finally:
        await backend.close()
