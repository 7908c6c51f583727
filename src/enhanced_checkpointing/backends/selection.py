"""What a database gives back of JSON and selects of a thread in a listing, told without asking it. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointMetadata, get_checkpoint_id

from enhanced_checkpointing.errors import CheckpointUnavailableError
from enhanced_checkpointing.serialization import Opaque, argument_of

Metadata = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Selection:
    """Of a thread's checkpoints, newest first: which ones, and how many."""

    matches: Callable[[Metadata], bool] = lambda _: True
    """Whether the metadata fits. Raises what the database says to this metadata with this filter."""
    below: Callable[[str], bool] = lambda _: True
    """Whether a checkpoint's id stands before the end of the other page."""
    limit: int | None = None
    """How many at most; None: all."""


EVERYTHING = Selection()


def plain(filter: Mapping[str, Any] | None, before: RunnableConfig | None, limit: int | None) -> Selection:
    """What databases agree on: texts in metadata, a checkpoint before which it is listed, a number of checkpoints.

    Raises:
        CheckpointUnavailableError: only the database knows what else it selects.
    """
    end = get_checkpoint_id(before) if before else None
    is_simple = isinstance(filter, dict) and all(
        key.isidentifier() and isinstance(value, str) for key, value in filter.items()
    )
    if (filter and not is_simple) or (before is not None and not end) or not (limit is None or limit > 0):
        raise CheckpointUnavailableError("only the primary knows what it selects by this filter, limit or `before`")
    return by_equality(filter, before, limit)


def by_equality(filter: Mapping[str, Any] | None, before: RunnableConfig | None, limit: int | None) -> Selection:
    """As LangGraph's memory selects: what is equal for Python is equal, and None stands for what is missing."""
    end = get_checkpoint_id(before) if before else None

    def matches(metadata: Metadata) -> bool:
        return not filter or all(value == metadata.get(key) for key, value in filter.items())

    return Selection(matches, lambda checkpoint_id: not end or checkpoint_id < end, limit)


@dataclass(frozen=True, slots=True)
class JsonForm:
    """How a database gives back what `json.dumps` takes; `text` and `number` say it of a `str` and of a `float`."""

    text: Callable[[str], str]
    number: Callable[[float], float | int]

    def of_metadata(self, metadata: Mapping[str, Any]) -> CheckpointMetadata:
        """What comes back of metadata; that with too many levels for Python stays as it is."""
        try:
            return cast("CheckpointMetadata", self._of_dict(metadata))
        except RecursionError:
            return cast("CheckpointMetadata", metadata)

    def of(self, value: Any) -> Any:
        """What comes back. What is no JSON stays as it is: writing it raises the error."""
        kind = type(value)
        if value is None or kind is bool or kind is int:
            return value
        if isinstance(value, str):
            return value if kind is str and value.isascii() else self.text(str.__str__(value))
        if isinstance(value, float):
            return self.number(float.__pos__(value))
        if isinstance(value, int):
            return int.__pos__(value)
        if isinstance(value, dict):
            return self._of_dict(value)
        if isinstance(value, (list, tuple)):
            return [self.of(part) for part in value]
        argument = argument_of(value) if type(value) is Opaque else value
        return value if argument is value else self.of(argument)

    def _of_dict(self, value: Mapping[Any, Any]) -> dict[Any, Any]:
        """Every write has its metadata here: what stays as it is, nearly all of it, is passed on without a call."""
        made: dict[Any, Any] = {}
        for key, part in value.items():
            kind = type(part)
            stays = part is None or kind is int or kind is bool or (kind is str and part.isascii())
            own_key = key if type(key) is str and key.isascii() else self._key(key)
            made[own_key] = part if stays else self.of(part)
        return made

    def _key(self, key: Any) -> Any:
        if isinstance(key, str):
            return self.of(key)
        if key is None or isinstance(key, bool):
            return {None: "null", True: "true", False: "false"}[key]
        if isinstance(key, float):
            return json.dumps(float.__pos__(key))
        return int.__repr__(key) if isinstance(key, int) else key
