"""A stored value as JSON that can be read and that gives the very bytes again. Pure."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
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

from enhanced_checkpointing.serialization import MSGPACK, Serialized

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
