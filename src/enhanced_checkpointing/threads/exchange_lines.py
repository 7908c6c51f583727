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

import base64
import json
import math
import re
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import ormsgpack
from langgraph.checkpoint.serde.jsonplus import (
    EXT_CONSTRUCTOR_KW_ARGS,
    EXT_CONSTRUCTOR_POS_ARGS,
    EXT_CONSTRUCTOR_SINGLE_ARG,
    EXT_DELTA_SNAPSHOT,
    EXT_METHOD_SINGLE_ARG,
    EXT_PYDANTIC_V1,
    EXT_PYDANTIC_V2,
)

from enhanced_checkpointing.backends.listing import DEEPEST, is_deeper
from enhanced_checkpointing.backends.reading import PutHistory
from enhanced_checkpointing.backends.stored_values import settled
from enhanced_checkpointing.errors import quoted, redact, shortened
from enhanced_checkpointing.identifiers import text_of
from enhanced_checkpointing.operations import Operation, Put, PutWrites
from enhanced_checkpointing.serialization import (
    BYTEARRAY,
    BYTES,
    JSON,
    MSGPACK,
    NULL,
    Serialized,
    SharingSerializer,
    dump_plain,
    has_known_format,
    load_plain,
)

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
    try:
        content: object = json.loads(body + b"}")
    except RecursionError:
        raise DamagedLine("it is JSON that is nested too deep") from None
    except ValueError as error:  # no UTF-8, or a number of more digits than Python reads, among them
        raise DamagedLine(f"it is no JSON: {told(error)}") from None
    if not isinstance(content, dict):
        raise DamagedLine("it is no JSON object")
    return content


def told(error: Exception) -> str:
    """What is wrong, in few words; an error may quote the whole line."""
    return shortened(" ".join(f"{type(error).__name__}: {redact(error)}".split()), 200)


def part(content: Mapping[str, Any], name: str, *kinds: type) -> Any:
    """One part of a line, of one of these types.

    Raises:
        DamagedLine: it is missing, or is something else.
    """
    if name not in content:
        raise DamagedLine(f"it lacks {name!r}")
    value = content[name]
    if type(value) not in kinds:
        raise DamagedLine(f"its {name!r} is {type(value).__name__}, not {' or '.join(kind.__name__ for kind in kinds)}")
    return value


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
        return {f"{name}_stored": encoded(dump_plain(plain, self._serializer))}

    def _value(self, value: Any) -> Any:
        value = settled(value, self._serializer)
        return encoded(value) if type(value) is Serialized else value


class Reader:
    """Makes the operations of one thread of the contents of its lines, in their order."""

    def __init__(self, thread_id: str, serializer: SharingSerializer) -> None:
        self._thread_id = thread_id
        self._serializer = serializer
        self._history = PutHistory(thread_id)
        self._before: tuple[str, Values] = ("", {})

    def operation(self, content: Mapping[str, Any]) -> Operation:
        """
        Raises:
            DamagedLine: there is no such operation.
        """
        kind = part(content, "kind", str)
        if kind not in ("checkpoint", "writes"):
            raise DamagedLine(f"it is of an unknown kind, {quoted(kind)}")
        try:
            return self._put(content) if kind == "checkpoint" else self._writes(content)
        except DamagedLine:
            raise
        except Exception as error:  # noqa: BLE001  # a line may hold anything
            raise DamagedLine(f"it holds something strange: {told(error)}") from None

    def _put(self, content: Mapping[str, Any]) -> Put:
        namespace, before = self._before
        new_namespace, parent = _named(content, "namespace"), part(content, "parent", str, type(None))
        parent = None if parent is None else _named(content, "parent")
        known = before if namespace == new_namespace else {}
        values = {
            channel: self._unchanged(known, channel) if value == UNCHANGED else self._value_of(value)
            for channel, value in part(content, "values", dict).items()
        }
        self._before = new_namespace, values
        skeleton = _checked(self._document("checkpoint", content))
        metadata = self._document("metadata", content)
        if is_deeper(metadata, DEEPEST):
            raise DamagedLine(f"its 'metadata' is nested deeper than {DEEPEST}")
        snapshots = part(content, "snapshots", list) if "snapshots" in content else ()
        return self._history.put(
            new_namespace, skeleton["id"], parent, skeleton, values, metadata, frozenset(map(_text, snapshots))
        )

    def _unchanged(self, known: Values, channel: str) -> Any:
        if channel not in known:
            raise DamagedLine(f"its channel {quoted(channel)} is said to be unchanged, and was not there before")
        return known[channel]

    def _value_of(self, content: Any) -> Any:
        """The value that a line says, bytes as they are stored: with a tag that the serializer may have given them."""
        if isinstance(content, dict):
            value = decoded(content)
            tag = value.tag.partition("+")[0] if type(value.tag) is str else None
            if has_known_format(self._serializer.inner) and tag not in _TAGS:
                raise DamagedLine(f"a value of it has the unknown type {told_text(content['type'])}")
            return value
        if isinstance(content, list):
            raise DamagedLine("a value of it is a list, which no export has")
        return content

    def _writes(self, content: Mapping[str, Any]) -> PutWrites:
        writes = tuple((_text(channel), self._value_of(value)) for channel, value in part(content, "writes", list))
        if not all(type(value) is Serialized for _, value in writes):
            raise DamagedLine("a value of its 'writes' has no type")
        names = ("namespace", "checkpoint_id", "task_id", "task_path")
        namespace, checkpoint_id, task_id, task_path = (_named(content, name) for name in names)
        return PutWrites(self._thread_id, namespace, checkpoint_id, writes, task_id, task_path)

    def _document(self, name: str, content: Mapping[str, Any]) -> dict[str, Any]:
        if name in content:
            return dict(part(content, name, dict))
        return dict(load_plain(self._value_of(part(content, f"{name}_stored", dict)), self._serializer))


_TAGS = (MSGPACK, BYTES, BYTEARRAY, NULL, JSON, "pickle")
"""What LangGraph's serializer has ever called what it stored."""


def _checked(skeleton: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint in which everything is of the type that LangGraph gives it."""
    _named(skeleton, "id")
    versions = part(skeleton, "channel_versions", dict)
    if not all(type(version) in (str, int, float) for version in versions.values()):
        raise DamagedLine("its 'channel_versions' has something that is no version")
    seen = part(skeleton, "versions_seen", dict)
    if not all(isinstance(of_node, dict) for of_node in seen.values()):
        raise DamagedLine("its 'versions_seen' has something that is no object")
    if "v" in skeleton:
        part(skeleton, "v", int)
    if "ts" in skeleton:
        _named(skeleton, "ts")
    return skeleton


def _named(content: Mapping[str, Any], name: str) -> str:
    """A text that a database keeps as it is; what names a checkpoint is not empty."""
    if content.get(name) == "" and name in ("id", "checkpoint_id", "parent"):
        raise DamagedLine(f"its {name!r} is empty")
    return text_of(part(content, name, str), f"its {name!r}")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise DamagedLine(f"{told_text(value)} is no text")
    return value


def told_text(value: object) -> str:
    return shortened(repr(value), 100)


def _check(body: bytes) -> str:
    return blake2b(body, digest_size=CHECK_BYTES).hexdigest()


OBJECTS = (
    EXT_CONSTRUCTOR_KW_ARGS,
    EXT_CONSTRUCTOR_POS_ARGS,
    EXT_CONSTRUCTOR_SINGLE_ARG,
    EXT_METHOD_SINGLE_ARG,
    EXT_PYDANTIC_V1,
    EXT_PYDANTIC_V2,
)
"""Extensions that say module, class and what the object is made of."""

_NOT_STRINGS = ormsgpack.OPT_NON_STR_KEYS


def encoded(value: Serialized) -> dict[str, Any]:
    """`{"type", "json"}` where that is exact, else `{"type", "data", "shows"}`, the last one where there is something
    to show."""
    if value.tag == MSGPACK and (exact := _exactly(value.data)) is not None:
        return {"type": value.tag, **exact}
    found = {"type": value.tag, "data": base64.b64encode(value.data).decode()}
    return found | (_shows(value.data) if value.tag == MSGPACK else {})


def decoded(content: Mapping[str, Any]) -> Serialized:
    """The value that was encoded.

    Raises:
        KeyError, TypeError, ValueError: none was.
    """
    if "data" in content:
        return Serialized(content["type"], base64.b64decode(content["data"], validate=True))
    return Serialized(content["type"], ormsgpack.packb(content["json"]))


def comes_back(document: Any) -> bool:
    """Whether a document is the same after it was written as JSON and read."""
    try:
        return bool(json.loads(json.dumps(document, allow_nan=False)) == document)
    except (TypeError, ValueError):
        return False


def _exactly(data: bytes) -> dict[str, Any] | None:
    """`{"json": …}` where that makes these bytes again."""
    try:
        value = json.loads(json.dumps(ormsgpack.unpackb(data), allow_nan=False))
        return {"json": value} if ormsgpack.packb(value) == data else None
    except (TypeError, ValueError):  # extensions, keys that are no text, bytes, numbers that JSON does not have
        return None


def _shows(data: bytes) -> dict[str, Any]:
    try:
        return {"shows": _as_json(ormsgpack.unpackb(data, ext_hook=_shown, option=_NOT_STRINGS))}
    except (TypeError, ValueError):
        return {}


def _shown(code: int, data: bytes) -> Any:
    """An extension as something to read; no class is looked for, and none is made."""
    if code == EXT_DELTA_SNAPSHOT:
        return {"snapshot": ormsgpack.unpackb(data, ext_hook=_shown, option=_NOT_STRINGS)}
    if code in OBJECTS:
        module, name, content, *_ = ormsgpack.unpackb(data, ext_hook=_shown, option=_NOT_STRINGS)
        return {f"{module}.{name}": content}
    return f"<extension {code} of {len(data)} bytes>"


def _as_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _as_json(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(part) for part in value]
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
