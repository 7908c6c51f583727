"""Values as bytes that are made once and shared by the primary, the standby and the journal."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import ormsgpack
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from enhanced_checkpointing.errors import CheckpointerError

MSGPACK, BYTES, BYTEARRAY, NULL, JSON = "msgpack", "bytes", "bytearray", "null", "json"
"""Tags of LangGraph's serializer; JSON is that of its first releases."""

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


@dataclass(frozen=True, slots=True)
class Opaque:
    """An object of the application as it is stored: a MessagePack extension that was not made into an object."""

    code: int
    data: bytes


def load_plain(value: Serialized, serializer: SharingSerializer) -> Any:
    """The value in `value`, in which objects of the application stay `Opaque`: whatever the bytes say, nothing runs.

    A serializer with a format of its own is the application's code, and is asked itself.

    Raises:
        CheckpointerError: a tag that this serializer does not know, or that makes objects (`pickle`).
        ValueError: the bytes are not what the tag says.
    """
    if not has_known_format(serializer.inner):
        return serializer.loads_typed((value.tag, value.data))
    plain = unsealed(value, serializer)
    if plain.tag == MSGPACK:
        return ormsgpack.unpackb(plain.data, ext_hook=Opaque, option=ormsgpack.OPT_NON_STR_KEYS)
    if plain.tag == JSON:
        try:
            return json.loads(plain.data)
        except RecursionError:
            raise ValueError("JSON that is nested too deep") from None
    if plain.tag in (NULL, BYTES, BYTEARRAY):
        return {NULL: None, BYTES: plain.data, BYTEARRAY: bytearray(plain.data)}[plain.tag]
    raise CheckpointerError(
        f"It is stored with the tag {value.tag!r}, which is not read without making objects of it, or which the "
        "serializer in use does not know: give the one that stored it. Nothing of it was read."
    )


def dump_plain(value: Any, serializer: SharingSerializer) -> Serialized:
    """What `load_plain` gave, possibly changed, as the serializer stores it: an `Opaque` with the bytes that it had."""
    inner = serializer.inner
    if not has_known_format(inner):
        return Serialized(*inner.dumps_typed(value))
    if value is None or isinstance(value, bytes | bytearray):
        return Serialized(*inner.dumps_typed(value))
    data = ormsgpack.packb(value, default=_extension, option=_PLAIN)
    if not isinstance(inner, EncryptedSerializer):
        return Serialized(MSGPACK, data)
    cipher, sealed = inner.cipher.encrypt(data)
    return Serialized(f"{MSGPACK}+{cipher}", sealed)


def unsealed(value: Serialized, serializer: SharingSerializer) -> Serialized:
    """What LangGraph's encrypting serializer has sealed, opened; everything else as it is."""
    inner = serializer.inner
    if "+" in value.tag and isinstance(inner, EncryptedSerializer) and has_known_format(inner):
        tag, cipher = value.tag.split("+", 1)
        return Serialized(tag, inner.cipher.decrypt(cipher, value.data))
    return value


def has_known_format(serializer: SerializerProtocol) -> bool:
    """Whether a serializer reads and writes as one of LangGraph's does, as far as its class tells."""
    kind = type(serializer)
    if isinstance(serializer, EncryptedSerializer):
        return _keeps_methods(kind, EncryptedSerializer) and has_known_format(serializer.serde)
    return isinstance(serializer, JsonPlusSerializer) and _keeps_methods(kind, JsonPlusSerializer)


def _keeps_methods(kind: type, base: type) -> bool:
    return all(getattr(kind, name) is getattr(base, name) for name in ("dumps_typed", "loads_typed"))


def _extension(value: Any) -> ormsgpack.Ext:
    if isinstance(value, Opaque):
        return ormsgpack.Ext(value.code, value.data)
    raise TypeError(f"a {type(value).__name__} is no plain value")


_PLAIN = (
    ormsgpack.OPT_NON_STR_KEYS
    | ormsgpack.OPT_PASSTHROUGH_DATACLASS
    | ormsgpack.OPT_PASSTHROUGH_DATETIME
    | ormsgpack.OPT_PASSTHROUGH_ENUM
    | ormsgpack.OPT_PASSTHROUGH_SUBCLASS
    | ormsgpack.OPT_PASSTHROUGH_UUID
    | ormsgpack.OPT_REPLACE_SURROGATES
)
