"""Values written out with their types, so that what differs in type, sign of zero or NaN differs in text too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langgraph.checkpoint.base import CheckpointTuple

SCALARS = (str, int, float, bool, type(None), bytes, bytearray)


def exact(value: Any) -> Any:
    """A value as texts and lists, equal for values that are equal in type and content; keys are not in any order."""
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, Mapping):
        return kind, sorted(((exact(key), exact(part)) for key, part in value.items()), key=repr)
    if isinstance(value, set | frozenset):
        return kind, sorted(map(exact, value), key=repr)
    if hasattr(value, "dtype") and hasattr(value, "tolist"):
        return kind, str(value.dtype), value.shape, repr(value.tolist())
    if isinstance(value, list | tuple) or kind == "collections.deque":
        return kind, [exact(part) for part in value]
    if not isinstance(value, SCALARS) and "__eq__" not in type(value).__dict__ and getattr(value, "__dict__", None):
        return kind, exact(vars(value))
    return kind, repr(value)


def exact_checkpoint(found: CheckpointTuple | None) -> Any:
    """What a saver says of a checkpoint: ids, versions, values, metadata and pending writes."""
    if found is None:
        return None
    return exact([found.checkpoint, found.metadata, found.parent_config, found.pending_writes])
