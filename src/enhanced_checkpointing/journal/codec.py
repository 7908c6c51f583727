"""An operation as the body of a journal record, and back. Pure.

A body is its description (JSON: ids and the base head), the tag of the serializer, and the payload: all that the
application stores, through the application's serializer, so that one which encrypts encrypts the journal too.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any

from langgraph.checkpoint.base import CheckpointMetadata

from enhanced_checkpointing.journal.api import UNKNOWN, BaseHead, Unknown
from enhanced_checkpointing.operations import DeleteThread, Operation, Put, PutWrites
from enhanced_checkpointing.serialization import (
    AS_JSON,
    Serialized,
    SharingSerializer,
    dump_any,
    has_known_format,
    has_large_integer,
    load_plain,
)

_LENGTHS = struct.Struct(">IH")
_NAMES = (Put.name, PutWrites.name, DeleteThread.name)


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
        if operation.annotated:
            described["annotated"] = operation.annotated
        content = {
            "skeleton": dict(operation.skeleton),
            "values": [[channel, *_flat(value)] for channel, value in operation.values.items()],
            "metadata": _flat_metadata(operation.metadata),
            "new_versions": operation.all_versions(),
            "snapshot_channels": sorted(operation.snapshot_channels),
        }
        tag, payload = _dumped(content, serializer)
    elif isinstance(operation, PutWrites):
        described |= {
            "ns": operation.checkpoint_ns,
            "id": operation.checkpoint_id,
            "task": operation.task_id,
            "path": operation.task_path,
        }
        writes = [[channel, *_flat(value)] for channel, value in operation.writes]
        tag, payload = _dumped(writes, serializer)
    description, tag_bytes = json.dumps(described).encode(), tag.encode()
    return b"".join((_LENGTHS.pack(len(description), len(tag_bytes)), description, tag_bytes, payload))


def describe(body: bytes) -> Description:
    """The description in a body.

    Raises ValueError, KeyError and others where the bytes, which may be what was written, describe nothing.
    """
    described = _described(body)
    name, place = described["name"], (described.get("ns"), described.get("id"))
    base_head = described.get("base", UNKNOWN)
    fits = place == (None, None) if name == DeleteThread.name else all(isinstance(each, str) for each in place)
    if name not in _NAMES or not fits or not isinstance(base_head, str | None | Unknown):
        raise ValueError("no operation is described like that")
    return Description(name, *place, base_head)


def decode(thread_id: str, body: bytes, serializer: SharingSerializer) -> Operation:
    """The operation of a body, without making objects of the application.

    Raises whatever the serializer raises for bytes that it cannot read, such as those of another key.
    """
    described = _described(body)
    if described["name"] == DeleteThread.name:
        return DeleteThread(thread_id)
    length, tag_length = _LENGTHS.unpack_from(body)
    start = _LENGTHS.size + length
    tag = body[start : start + tag_length].decode()
    content: Any = load_plain(Serialized(tag, body[start + tag_length :]), serializer)
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
        metadata=_deep_metadata(content["metadata"]),
        new_versions=content["new_versions"],
        snapshot_channels=frozenset(content["snapshot_channels"]),
        annotated=tuple(described.get("annotated", ())),
    )


def _described(body: bytes) -> dict[str, Any]:
    length, _ = _LENGTHS.unpack_from(body)
    described: dict[str, Any] = json.loads(body[_LENGTHS.size : _LENGTHS.size + length])
    return described


def _dumped(content: Any, serializer: SharingSerializer) -> tuple[str, bytes]:
    kept = dump_any(content, serializer)
    if kept.tag.startswith("pickle") and has_known_format(serializer.inner):
        raise TypeError("the metadata of a checkpoint would have to be pickled, which the journal does not read back")
    return kept.tag, kept.data


def _flat(value: Any) -> tuple[Any, ...]:
    if type(value) is Serialized:
        return value.tag, value.data
    return (AS_JSON, json.dumps(value).encode()) if has_large_integer(value) else (value,)


def _deep(value: Any, *data: bytes) -> Any:
    if not data:
        return value
    return json.loads(*data) if value == AS_JSON else Serialized(value, *data)


def _flat_metadata(metadata: CheckpointMetadata) -> Any:
    return [*_flat(metadata)] if has_large_integer(metadata) else metadata


def _deep_metadata(kept: Any) -> Any:
    return _deep(*kept) if isinstance(kept, list) else kept
