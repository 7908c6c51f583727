"""What a plain value is when it comes back from JSON, without a trip through it. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from langgraph.checkpoint.base import CheckpointMetadata

from enhanced_checkpointing.serialization import Opaque, argument_of


@dataclass(frozen=True, slots=True)
class JsonForm:
    """How a database gives back what `json.dumps` takes; `text` and `number` say it of a `str` and of a `float`."""

    text: Callable[[str], str]
    number: Callable[[float], float | int]

    def of_metadata(self, metadata: Mapping[str, Any]) -> CheckpointMetadata:
        """What comes back of metadata; that with too many levels for Python stays as it is."""
        try:
            return cast("CheckpointMetadata", self.of(metadata) if type(metadata) is dict else {**self.of(metadata)})
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
