"""The lines of an export: one JSON object each, for people and programs to read, and exact. Pure.

Format 1, in the order of the lines; every one ends with `check`, a hash of all that stands before it:

* `{"kind": "export", "format": 1, "source": …, "exported_at": …}`
* for each thread, numbered from 1 by `line`, with the id of the `thread`:
  * `"kind": "checkpoint"` with `namespace`, `parent`, the `checkpoint` as LangGraph makes it but for its values,
    `metadata`, and `values` by channel; `snapshots` names the delta channels whose value is one;
  * `"kind": "writes"`: what one task wrote upon a checkpoint, as pairs of channel and value;
  * `"kind": "end of thread"` with the number of its `checkpoints` and `calls` of writes
* `{"kind": "end of export", "threads": …, "whole": …}`, the last one a hash of all lines before; not in exports of old

A text, a number, true, false or null is a value itself. Any other is `{"type": …}`, the serializer's tag, with `json`
where MessagePack makes the stored bytes of that again; else with `data`, the bytes in base64, and `shows`, what can be
read of them: an object as its class with its fields. `{"unchanged": true}` is the value that the channel has in the
checkpoint before in the same namespace. A document that is no JSON stands as such a value in `metadata_stored` or
`checkpoint_stored` instead.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

from enhanced_checkpointing.backends.reading import History
from enhanced_checkpointing.backends.stored_values import load, settled
from enhanced_checkpointing.operations import Operation, Put, PutWrites
from enhanced_checkpointing.serialization import Serialized, SharingSerializer
from enhanced_checkpointing.threads.exchange_values import comes_back, decoded, encoded

FORMAT = 1
UNCHANGED = {"unchanged": True}
CHECK_BYTES = 8
_CHECK = re.compile(rb', "check": "([0-9a-f]{16})"\}\n?\Z')

Values = Mapping[str, Any]


class DamagedLine(Exception):
    """A line is not what was exported; the message says what is wrong with it."""


def line_of(content: Mapping[str, Any]) -> bytes:
    """A line with its check."""
    try:
        body = json.dumps(content, ensure_ascii=False, allow_nan=False).encode()[:-1]
    except UnicodeEncodeError:  # half of a character, which only the long way of writing has
        body = json.dumps(content, allow_nan=False).encode()[:-1]
    return body + f', "check": "{_check(body)}"}}\n'.encode()


def content_of(line: bytes) -> dict[str, Any]:
    """What a line says.

    Raises:
        DamagedLine: it is cut off, or was changed.
    """
    found = _CHECK.search(line)
    if found is None:
        raise DamagedLine("it has no check at its end, as if it were cut off")
    body = line[: found.start()]
    if found[1].decode() != _check(body):
        raise DamagedLine("its check does not fit, so it was changed or damaged")
    content: dict[str, Any] = json.loads(body + b"}")
    return content


class Whole:
    """A hash of all lines of an export, in their order."""

    def __init__(self) -> None:
        self._hash = blake2b(digest_size=CHECK_BYTES)

    def add(self, line: bytes) -> None:
        self._hash.update(line.rstrip(b"\n") + b"\n")

    def value(self) -> str:
        return self._hash.hexdigest()


class Writer:
    """Makes the contents of lines of the operations of one thread, in their order."""

    def __init__(self, thread_id: str, serializer: SharingSerializer) -> None:
        self._thread_id = thread_id
        self._serializer = serializer
        self._before: tuple[str, Values] = ("", {})
        self._lines = 0
        self.checkpoints = 0
        self.calls = 0
        self.writes = 0

    def content(self, operation: Operation) -> dict[str, Any]:
        assert isinstance(operation, (Put, PutWrites))
        if isinstance(operation, Put):
            self.checkpoints += 1
            return self._numbered("checkpoint", self._put(operation))
        self.calls += 1
        self.writes += len(operation.writes)
        return self._numbered("writes", self._writes(operation))

    def end(self) -> dict[str, Any]:
        return self._numbered("end of thread", {"checkpoints": self.checkpoints, "calls": self.calls})

    def _numbered(self, kind: str, content: Mapping[str, Any]) -> dict[str, Any]:
        self._lines += 1
        return {"thread": self._thread_id, "line": self._lines, "kind": kind, **content}

    def _put(self, put: Put) -> dict[str, Any]:
        namespace, before = self._before
        known = before if namespace == put.checkpoint_ns else {}
        values = {
            channel: UNCHANGED if type(value) is Serialized and known.get(channel) == value else self._value(value)
            for channel, value in put.values.items()
        }
        self._before = put.checkpoint_ns, put.values
        return {
            "namespace": put.checkpoint_ns,
            "parent": put.parent_checkpoint_id,
            **self._document("checkpoint", put.skeleton),
            "values": values,
            **self._document("metadata", put.metadata),
            **({"snapshots": sorted(put.snapshot_channels)} if put.snapshot_channels else {}),
        }

    def _writes(self, operation: PutWrites) -> dict[str, Any]:
        return {
            "namespace": operation.checkpoint_ns,
            "checkpoint_id": operation.checkpoint_id,
            "task_id": operation.task_id,
            "task_path": operation.task_path,
            "writes": [[channel, self._value(value)] for channel, value in operation.writes],
        }

    def _document(self, name: str, document: Mapping[str, Any]) -> dict[str, Any]:
        plain = dict(document)
        if comes_back(plain):
            return {name: plain}
        return {f"{name}_stored": encoded(Serialized(*self._serializer.dumps_typed(plain)))}

    def _value(self, value: Any) -> Any:
        value = settled(value, self._serializer)
        return encoded(value) if type(value) is Serialized else value


class Reader:
    """Makes the operations of one thread of the contents of its lines, in their order."""

    def __init__(self, thread_id: str, serializer: SharingSerializer) -> None:
        self._thread_id = thread_id
        self._serializer = serializer
        self._history = History(thread_id)
        self._before: tuple[str, Values] = ("", {})

    def operation(self, content: Mapping[str, Any]) -> Operation:
        """
        Raises:
            DamagedLine: there is no such operation.
        """
        try:
            return self._put(content) if content["kind"] == "checkpoint" else self._writes(content)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DamagedLine(f"it lacks something, or holds something strange: {error!r}") from error

    def _put(self, content: Mapping[str, Any]) -> Put:
        namespace, before = self._before
        known = before if namespace == content["namespace"] else {}
        values = {
            channel: known[channel] if value == UNCHANGED else _value_of(value)
            for channel, value in content["values"].items()
        }
        self._before = content["namespace"], values
        skeleton = self._document("checkpoint", content)
        return self._history.put(
            content["namespace"],
            skeleton["id"],
            content["parent"],
            skeleton,
            values,
            self._document("metadata", content),
            frozenset(content.get("snapshots", ())),
        )

    def _writes(self, content: Mapping[str, Any]) -> PutWrites:
        writes = tuple((channel, decoded(value)) for channel, value in content["writes"])
        return PutWrites(
            self._thread_id,
            content["namespace"],
            content["checkpoint_id"],
            writes,
            content["task_id"],
            content["task_path"],
        )

    def _document(self, name: str, content: Mapping[str, Any]) -> dict[str, Any]:
        if name in content:
            return dict(content[name])
        return dict(load(decoded(content[f"{name}_stored"]), self._serializer))


def _value_of(content: Any) -> Any:
    return decoded(content) if isinstance(content, dict) else content


def _check(body: bytes) -> str:
    return blake2b(body, digest_size=CHECK_BYTES).hexdigest()
