"""An operation as the body of a journal record, and back. Pure.

A body is its description (JSON: ids and the base head), the tag of the serializer, and the payload: all that the
application stores, through the application's serializer, so that one which encrypts encrypts the journal too.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any

from enhanced_checkpointing.journal.contract import UNKNOWN, BaseHead
from enhanced_checkpointing.operations import DeleteThread, Operation, Put, PutWrites
from enhanced_checkpointing.serialization import Serialized, SharingSerializer

_LENGTHS = struct.Struct(">IH")


@dataclass(frozen=True, slots=True)
class Description:
    """What a body says of its operation without the serializer."""

    name: str
    checkpoint_ns: str | None
    checkpoint_id: str | None
    base_head: BaseHead


def encode(operation: Operation, base_head: BaseHead, serializer: SharingSerializer) -> bytes:
    """The body of an operation's record, as `replayable` gives it.

    Raises whatever the serializer raises for metadata that it does not know.
    """
    described: dict[str, Any] = {"name": operation.name}
    if base_head is not UNKNOWN:
        described["base"] = base_head
    tag, payload = "null", b""
    if isinstance(operation, Put):
        described |= {
            "ns": operation.checkpoint_ns,
            "id": operation.checkpoint_id,
            "parent": operation.parent_checkpoint_id,
        }
        content = {
            "skeleton": dict(operation.skeleton),
            "values": [[channel, *_flat(value)] for channel, value in operation.values.items()],
            "metadata": operation.metadata,
            "new_versions": operation.all_versions(),
            "snapshot_channels": sorted(operation.snapshot_channels),
        }
        tag, payload = serializer.inner.dumps_typed(content)
    elif isinstance(operation, PutWrites):
        described |= {
            "ns": operation.checkpoint_ns,
            "id": operation.checkpoint_id,
            "task": operation.task_id,
            "path": operation.task_path,
        }
        writes = [[channel, *_flat(value)] for channel, value in operation.writes]
        tag, payload = serializer.inner.dumps_typed(writes)
    description, tag_bytes = json.dumps(described).encode(), tag.encode()
    return b"".join((_LENGTHS.pack(len(description), len(tag_bytes)), description, tag_bytes, payload))


def describe(body: bytes) -> Description:
    """The description in a body."""
    described = _described(body)
    return Description(described["name"], described.get("ns"), described.get("id"), described.get("base", UNKNOWN))


def decode(thread_id: str, body: bytes, serializer: SharingSerializer) -> Operation:
    """The operation of a body.

    Raises whatever the serializer raises for bytes that it cannot read, such as those of another key.
    """
    described = _described(body)
    if described["name"] == DeleteThread.name:
        return DeleteThread(thread_id)
    length, tag_length = _LENGTHS.unpack_from(body)
    start = _LENGTHS.size + length
    tag = body[start : start + tag_length].decode()
    content: Any = serializer.inner.loads_typed((tag, body[start + tag_length :]))
    if described["name"] == PutWrites.name:
        writes = tuple((channel, _deep(*flat)) for channel, *flat in content)
        return PutWrites(thread_id, described["ns"], described["id"], writes, described["task"], described["path"])
    return Put(
        thread_id=thread_id,
        checkpoint_ns=described["ns"],
        checkpoint_id=described["id"],
        parent_checkpoint_id=described["parent"],
        skeleton=content["skeleton"],
        values={channel: _deep(*flat) for channel, *flat in content["values"]},
        metadata=content["metadata"],
        new_versions=content["new_versions"],
        snapshot_channels=frozenset(content["snapshot_channels"]),
    )


def _described(body: bytes) -> dict[str, Any]:
    length, _ = _LENGTHS.unpack_from(body)
    described: dict[str, Any] = json.loads(body[_LENGTHS.size : _LENGTHS.size + length])
    return described


def _flat(value: Any) -> tuple[Any, ...]:
    return (value.tag, value.data) if type(value) is Serialized else (value,)


def _deep(value: Any, *data: bytes) -> Any:
    return Serialized(value, *data) if data else value
