"""Values as bytes that are made once and shared by the primary, the standby and the journal."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

INLINE_TYPES = (str, int, float, bool, type(None))
"""Values of these types are immutable and stay as they are; all others become `Serialized`."""


@dataclass(slots=True)
class Serialized:
    """A value as the serializer's type tag and bytes. Nothing changes it; `frozen`, it takes twice as long to make."""

    tag: str
    data: bytes


class SharingSerializer(SerializerProtocol):
    """The one serializer of a manager: it passes `Serialized` values through, so that bytes are made once.

    `inner` is the serializer of the application. It is replaced when LangGraph derives a saver with a wider
    allow-list, so that the primary, the standby and the journal all read by the same list.
    """

    def __init__(self, inner: SerializerProtocol | None = None) -> None:
        self.inner: SerializerProtocol = inner or JsonPlusSerializer()

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        if type(obj) is Serialized:
            return obj.tag, obj.data
        return self.inner.dumps_typed(obj)

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        return self.inner.loads_typed(data)

    def freeze(self, value: Any) -> Any:
        """Return `value` itself if it is immutable and small, else its bytes."""
        return value if isinstance(value, INLINE_TYPES) else Serialized(*self.inner.dumps_typed(value))

    def thaw(self, value: Any) -> Any:
        """Return the live value of what `freeze` made."""
        return self.inner.loads_typed((value.tag, value.data)) if type(value) is Serialized else value


def widen_allowlist(serializer: SharingSerializer, extra: Collection[tuple[str, ...]]) -> SerializerProtocol:
    """Let `serializer` read the types in `extra` too, and return the application's serializer as it is then."""
    bare: BaseCheckpointSaver[Any] = BaseCheckpointSaver(serde=serializer.inner)
    serializer.inner = bare.with_allowlist(extra).serde
    return serializer.inner
