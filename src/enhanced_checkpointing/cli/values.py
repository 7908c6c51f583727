"""Stored values as plain data and as text: no class of an application is imported, and none is made. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ormsgpack
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import EXT_DELTA_SNAPSHOT, JsonPlusSerializer
from langgraph.checkpoint.serde.types import _DeltaSnapshot

from enhanced_checkpointing.cli.output import one_line, one_size
from enhanced_checkpointing.serialization import (
    BYTEARRAY,
    BYTES,
    MSGPACK,
    NULL,
    Serialized,
    SharingSerializer,
    decrypted,
)
from enhanced_checkpointing.threads.exchange_lines import OBJECTS

_NOT_STRINGS = ormsgpack.OPT_NON_STR_KEYS

_KEPT = "kept"
"""The tag of what this serializer was given to store: a reader's own intermediate values, never a database's."""


@dataclass(frozen=True, slots=True)
class Described:
    """An object as it is stored: of what class it is, and what it is made of."""

    module: str
    name: str
    content: Any


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A value that is not opened, such as one that is sealed, or one that would run code: what it is stored as."""

    tag: str
    size: int


class PlainSerializer(SerializerProtocol):
    """Reads values without making objects of them.

    `own` is the application's serializer, for what is sealed, or stored in a form of its own.
    """

    def __init__(self, own: SerializerProtocol | None = None) -> None:
        self._own = own
        self._kept: list[Any] = []

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        """Keep what a saver puts aside while it reads a checkpoint of an old format; nothing is ever stored by this."""
        self._kept.append(obj)
        return _KEPT, str(len(self._kept) - 1).encode()

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        tag, content = data
        if tag == _KEPT:
            return self._kept[int(content)]
        own = self._own
        if isinstance(own, EncryptedSerializer) and "+" in tag:
            opened = decrypted(Serialized(tag, content), own)
            return _decoded(opened.tag, opened.data)
        if own is None or isinstance(own, (EncryptedSerializer, JsonPlusSerializer)):
            return _decoded(tag, content)
        return _plain(SharingSerializer(own).loads_typed((tag, content)))


def as_json(value: Any) -> Any:
    """A plain value in JSON types; an object is one key, its class, with what it is made of."""
    if isinstance(value, Described):
        return {f"{value.module}.{value.name}": as_json(value.content)}
    if isinstance(value, Unreadable):
        return f"<{value.tag}, {value.size} bytes>"
    if isinstance(value, _DeltaSnapshot):
        return as_json(value.value)
    if isinstance(value, dict):
        return {str(key): as_json(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(part) for part in value]
    if isinstance(value, (bytes, bytearray)):
        return f"<{len(value)} bytes>"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def unwrapped(value: Any) -> Any:
    """The value of a delta channel of which this is a snapshot; every other value as it is."""
    return value.value if isinstance(value, _DeltaSnapshot) else value


def _decoded(tag: str, data: bytes) -> Any:
    if tag == NULL:
        return None
    if tag in (BYTES, BYTEARRAY):
        return bytes(data)
    try:
        if tag == "json":  # of LangGraph's first years; objects are dicts that say so
            return json.loads(data)
        if tag == MSGPACK:
            return ormsgpack.unpackb(data, ext_hook=_described, option=_NOT_STRINGS)
    except ValueError:  # unreadable, and the rest of the state is still worth looking at
        return Unreadable(f"damaged {tag}", len(data))
    return Unreadable(tag, len(data))


def _described(code: int, data: bytes) -> Any:
    if code not in (*OBJECTS, EXT_DELTA_SNAPSHOT):
        return Unreadable(f"extension {code}", len(data))
    found = ormsgpack.unpackb(data, ext_hook=_described, option=_NOT_STRINGS)
    if code == EXT_DELTA_SNAPSHOT:
        return _DeltaSnapshot(found)
    return Described(str(found[0]), str(found[1]), found[2]) if _is_object(found) else found


def _is_object(found: Any) -> bool:
    return isinstance(found, Sequence) and not isinstance(found, str) and len(found) >= 3


def _plain(value: Any) -> Any:
    """What a serializer of the application's own has made, as plain data again."""
    try:
        return _decoded(*JsonPlusSerializer().dumps_typed(value))
    except TypeError:  # LangGraph's serializer has no form for such an object
        return Unreadable(type(value).__name__, 0)


_TEXTS = {"datetime", "UUID", "Decimal", "PosixPath", "Path", "WindowsPath", "ZoneInfo"}
"""Classes whose one argument says everything."""
_COLLECTIONS = {"set", "frozenset", "deque"}

MOST_ITEMS = 200
"""Of a list or a dict, of which a line is made that is cut anyway."""


def cut(text: str, most: int | None) -> str:
    """The beginning of a text, and how much more there is; all of it for None."""
    if most is None or len(text) <= most:
        return text
    return f"{text[:most].rstrip()}… ({len(text) - most:,} more characters)"


def brief(value: Any, most: int) -> str:
    """What a value begins with, on one line; of a dict its parts, without brackets."""
    value = unwrapped(value)
    if isinstance(value, dict):
        text = ", ".join(f"{shown(key)}: {shown(part, most)}" for key, part in [*value.items()][:MOST_ITEMS])
    else:
        text = shown(value, 4 * most)
    return text if len(text) <= most else f"{text[:most].rstrip()}…"


def shown(value: Any, most: int | None = None) -> str:
    """A value on one line: a text as it is, everything else as it would be written in Python."""
    value = unwrapped(value)
    limited = None if most is None else MOST_ITEMS
    return cut(one_line(value if isinstance(value, str) else _written(value, limited)), most)


def _written(value: Any, most: int | None) -> str:
    value = unwrapped(value)
    if isinstance(value, Described):
        return _object(value, most)
    if isinstance(value, Unreadable):
        return f"<not opened: {value.tag}, {one_size(value.size)}>"
    if isinstance(value, dict):
        parts = [f"{_written(key, most)}: {_written(part, most)}" for key, part in [*value.items()][:most]]
        return f"{{{_joined(parts, len(value))}}}"
    if isinstance(value, (list, tuple)):
        return f"[{_joined([_written(part, most) for part in value[:most]], len(value))}]"
    if isinstance(value, (bytes, bytearray)):
        return f"<{one_size(len(value))} of binary data>"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)


def _object(value: Described, most: int | None) -> str:
    content = value.content
    if value.name in _TEXTS and isinstance(content, str):
        return content
    if value.name in _COLLECTIONS and isinstance(content, (list, tuple)):
        return f"{{{_joined([_written(part, most) for part in content[:most]], len(content))}}}"
    if isinstance(content, dict):
        told = {key: part for key, part in content.items() if part not in (None, [], {}, "")}
        return f"{value.name}({', '.join(f'{key}={_written(part, most)}' for key, part in told.items())})"
    if isinstance(content, (list, tuple)):
        return f"{value.name}({', '.join(_written(part, most) for part in content)})"
    return f"{value.name}({_written(content, most)})"


def _joined(parts: list[str], total: int) -> str:
    more = [f"… {total - len(parts):,} more"] if total > len(parts) else []
    return ", ".join([*parts, *more])
