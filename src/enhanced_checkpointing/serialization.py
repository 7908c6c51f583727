"""Values as bytes that are made once and shared by the primary, the standby and the journal."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeGuard

import ormsgpack
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import EXT_CONSTRUCTOR_SINGLE_ARG, EXT_PYDANTIC_V2, JsonPlusSerializer

from enhanced_checkpointing.errors import CheckpointCorruptionError, CheckpointerError, redact
from enhanced_checkpointing.identifiers import INTEGERS

MSGPACK, BYTES, BYTEARRAY, NULL, JSON = "msgpack", "bytes", "bytearray", "null", "json"
"""Tags of LangGraph's serializer; JSON is that of its first releases."""

AS_JSON = "plain-json"
"""Our own tag, for the warm copy and the journal only: plain values that MessagePack cannot hold."""

METADATA_KEYS = {"source", "step"}
"""What LangGraph writes into the metadata of every checkpoint: it tells metadata from a value, in a format of an
application's own."""

INLINE_TYPES = (str, int, float, bool, type(None))
"""Values of these types are immutable and stay as they are; all others become `Serialized`."""


@dataclass(slots=True)
class Serialized:
    """A value as the serializer's type tag and bytes. Nothing changes it; `frozen`, it takes twice as long to make."""

    tag: str
    data: bytes


_without_objects: ContextVar[bool] = ContextVar("without objects", default=False)


@contextmanager
def without_objects() -> Iterator[None]:
    """What a saver reads and writes meanwhile is not made into objects of the application: see `load_plain`. Values
    that cannot be read so stay the bytes that they are."""
    token = _without_objects.set(True)
    try:
        yield
    finally:
        _without_objects.reset(token)


class SharingSerializer(SerializerProtocol):
    """The one serializer of a manager: it passes `Serialized` values through, so that bytes are made once.

    `inner` is the serializer of the application. It is replaced when LangGraph derives a saver with a wider
    allow-list, so that the primary, the standby and the journal all read by the same list.
    """

    def __init__(self, inner: SerializerProtocol | None = None, *, accept_unencrypted: bool = True) -> None:
        self.inner: SerializerProtocol = inner or JsonPlusSerializer()
        self._accept_unencrypted = accept_unencrypted

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        if type(obj) is Serialized:
            return obj.tag, obj.data
        if type(obj) is Opaque:
            obj = dump_plain(obj, self)
            return obj.tag, obj.data
        if _without_objects.get():
            obj = dump_any(obj, self)
            return obj.tag, obj.data
        tag, data = self.inner.dumps_typed(obj)
        return tag, data if type(data) is bytes else bytes(data)  # a `bytearray` is passed on as it is, and may change

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        if data[0] == AS_JSON:
            return json.loads(data[1])
        if _without_objects.get():
            return _kept(Serialized(*data), self)
        inner = self.inner
        is_plain = type(inner) is JsonPlusSerializer  # nearly always, and then nothing more is asked for each value
        if not (is_plain or self._accept_unencrypted or "+" in data[0]) and is_encrypting(inner):
            raise CheckpointCorruptionError(
                f"A value is stored with the tag {data[0]!r}, without the encryption that the serializer insists on: "
                "it is older than the encryption, or was put there by other hands. It was not read, and nothing was "
                "changed. If it is yours, set CHECKPOINT_ACCEPT_UNENCRYPTED=true until all threads are encrypted."
            )
        if is_plain:
            return inner.loads_typed(data)
        try:
            return inner.loads_typed(data)
        except Exception:
            unsealed(Serialized(*data), self)  # which says so if that is what failed
            raise

    def freeze(self, value: Any) -> Any:
        """Return `value` itself if it is immutable and small, else its bytes."""
        return value if type(value) in INLINE_TYPES else Serialized(*self.dumps_typed(value))

    def thaw(self, value: Any) -> Any:
        """Return the live value of what `freeze` made, or `load_plain`, as the application reads it."""
        if type(value) is not Serialized:
            if not has_opaque(value):
                return value
            value = dump_plain(value, self)
        return self.loads_typed((value.tag, value.data))


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
    if not has_known_format(serializer.inner) and value.tag != AS_JSON:
        return serializer.inner.loads_typed((value.tag, value.data))
    plain = unsealed(value, serializer)
    if plain.tag == MSGPACK:
        return _unpacked(plain.data)
    if plain.tag in (JSON, AS_JSON):
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


def _kept(value: Serialized, serializer: SharingSerializer) -> Any:
    """What a saver reads: a checkpoint, or its metadata, as plain values, and anything else at least as its bytes."""
    tag = value.tag.split("+")[0]
    if tag == NULL and has_known_format(serializer.inner):
        return None
    if tag not in (MSGPACK, JSON) and has_known_format(serializer.inner):
        return value
    plain = load_plain(value, serializer)
    if tag == MSGPACK:
        return plain
    if isinstance(plain, dict) and tag != JSON and ("channel_versions" in plain or plain.keys() >= METADATA_KEYS):
        return plain
    if not isinstance(plain, dict) or "channel_versions" not in plain:
        return value
    of_channels = {name: _in_json(part) for name, part in (plain.get("channel_values") or {}).items()}
    return {**plain, "channel_values": of_channels}


def plain_metadata(read: Any, serializer: SharingSerializer) -> Mapping[str, Any]:
    """The metadata of a checkpoint that was read `without_objects`: one that LangGraph has not made may be bytes."""
    plain: Mapping[str, Any] = load_plain(read, serializer) if type(read) is Serialized else read
    return plain


def _in_json(part: Any) -> Any:
    """A value within a checkpoint in JSON, such that it is read as JSON later, too."""
    return Serialized(JSON, json.dumps(part).encode()) if isinstance(part, dict | list) else part


def dump_plain(value: Any, serializer: SharingSerializer) -> Serialized:
    """What `load_plain` gave, possibly changed, as the serializer stores it: an `Opaque` with the bytes that it had."""
    return Serialized(*plain_parts(value, serializer))


def plain_parts(value: Any, serializer: SharingSerializer) -> tuple[str, bytes]:
    """Tag and bytes of `dump_plain`, for what is done with every write: to make a `Serialized` takes half a µs."""
    inner = serializer.inner
    if type(inner) is JsonPlusSerializer and type(value) is dict:  # nearly always: nothing more is asked
        return MSGPACK, ormsgpack.packb(value, default=_extension, option=_PLAIN)
    if value is None or isinstance(value, (bytes, bytearray)) or not has_known_format(inner):
        return inner.dumps_typed(value)
    data = ormsgpack.packb(value, default=_extension, option=_PLAIN)
    if not is_encrypting(inner):
        return MSGPACK, data
    cipher, sealed = inner.cipher.encrypt(data)
    return f"{MSGPACK}+{cipher}", sealed


def dump_any(value: Any, serializer: SharingSerializer) -> Serialized:
    """As `dump_plain`, of objects of the application too."""
    try:
        return dump_plain(value, serializer)
    except TypeError:
        tag, data = serializer.inner.dumps_typed(value)
        return Serialized(tag, bytes(data))


def dump_described(value: Any, serializer: SharingSerializer) -> tuple[str, bytes]:
    """Tag and bytes of what describes a checkpoint, or of a frozen value, for the warm copy: also what MessagePack
    cannot hold."""
    if type(value) is Serialized:
        return value.tag, value.data
    try:
        return plain_parts(value, serializer)
    except TypeError:
        if has_large_integer(value):
            return AS_JSON, json.dumps(value).encode()
        described = dump_any(value, serializer)
        return described.tag, described.data


def argument_of(value: Opaque) -> Any:
    """The plain value that an object was made with, such as that of an enum; the object itself, if there is none."""
    if value.code != EXT_CONSTRUCTOR_SINGLE_ARG:
        return value
    parts = _unpacked(value.data)
    return parts[2] if isinstance(parts, list) and len(parts) == 3 else value


def lost_types(value: Serialized, serializer: SharingSerializer) -> set[str]:
    """The types whose objects come back from a value as something else: the allow-list does not have them, or their
    module is not here. A class that is not found in its module, as that of a generic model, never comes back."""
    if not has_known_format(serializer.inner) or not (kept := types_in(value, serializer)):
        return set()
    live = serializer.loads_typed((value.tag, value.data))
    lost = kept - types_in(Serialized(*serializer.dumps_typed(live)), serializer)
    return {f"{module}.{name}" for module, name in lost if hasattr(sys.modules.get(module, _ANYTHING), name)}


class _Anything:
    """A module that is not imported may have every class."""

    def __getattr__(self, name: str) -> None:
        return None


_ANYTHING = _Anything()


def types_in(value: Serialized, serializer: SharingSerializer) -> set[tuple[str, str]]:
    """Module and name of every type whose objects a value has, read as bytes: none is made.

    Raises:
        ValueError: the bytes are not what the tag says.
    """
    if unsealed(value, serializer).tag != MSGPACK:
        return set()
    found: set[tuple[str, str]] = set()
    left = [load_plain(value, serializer)]
    while left:
        part = left.pop()
        if isinstance(part, Opaque):
            inner = _unpacked(part.data)
            if part.code <= EXT_PYDANTIC_V2 and isinstance(inner, list) and all(type(one) is str for one in inner[:2]):
                found.add((inner[0], inner[1]))
            left.append(inner)
        elif isinstance(part, dict):
            left += part.values()
        elif isinstance(part, list):
            left += part
    return found


def has_large_integer(value: Any) -> bool:
    """Whether there is an integer in a value that MessagePack cannot hold. Compared with its bounds, as a `range` is
    searched from its beginning for what is not quite an `int`."""
    return _has(value, lambda part: isinstance(part, int) and not INTEGERS.start <= part < INTEGERS.stop)


def has_opaque(value: Any) -> bool:
    """Whether there is an `Opaque` in a plain value."""
    return _has(value, lambda part: type(part) is Opaque)


def _has(value: Any, wanted: Callable[[Any], bool]) -> bool:
    if isinstance(value, dict):
        return any(_has(part, wanted) for part in value.values())
    if isinstance(value, (list, tuple)):
        return any(_has(part, wanted) for part in value)
    return wanted(value)


def unsealed(value: Serialized, serializer: SharingSerializer) -> Serialized:
    """What LangGraph's encrypting serializer has sealed, opened; everything else as it is.

    Raises:
        CheckpointCorruptionError: the serializer's key does not open it.
    """
    inner = serializer.inner
    if not ("+" in value.tag and is_encrypting(inner) and has_known_format(inner)):
        return value
    return decrypted(value, inner)


def decrypted(value: Serialized, inner: EncryptedSerializer) -> Serialized:
    """What this serializer has sealed, opened.

    Raises:
        CheckpointCorruptionError: its key does not open it.
    """
    tag, cipher = value.tag.split("+", 1)
    try:
        return Serialized(tag, inner.cipher.decrypt(cipher, value.data))
    except Exception as error:  # whatever a cipher raises
        raise CheckpointCorruptionError(
            f"A stored value cannot be decrypted ({redact(error)}): it was encrypted with another key, or changed "
            "since. It was not read, and nothing was changed. Give the serializer the key that it was stored with; if "
            "that is the one in use, restore the thread from a backup, or delete it."
        ) from error


def is_same(kept: Serialized, value: Any, serializer: SharingSerializer) -> bool:
    """Whether a value that was read is the one that is kept. What was sealed is compared: a seal differs each time, and
    a value need not be equal to its own copy."""
    read = _bytes_of(value, serializer)
    if read == unsealed(kept, serializer):
        return True
    mine = serializer.loads_typed((kept.tag, kept.data))
    if read == _bytes_of(mine, serializer):
        return True
    try:  # a serializer of the application may seal, too
        return _COMPARING.dumps_typed(mine) == _COMPARING.dumps_typed(value) or bool(mine == value)
    except Exception:  # noqa: BLE001  # whatever a value raises that is no truth, such as an array
        return False


def _bytes_of(value: Any, serializer: SharingSerializer) -> Serialized:
    return unsealed(Serialized(*serializer.dumps_typed(value)), serializer)


def has_known_format(serializer: SerializerProtocol) -> bool:
    """Whether a serializer reads and writes as one of LangGraph's does, as far as its class tells."""
    kind = type(serializer)
    if kind is JsonPlusSerializer:
        return True
    if is_encrypting(serializer):
        return _keeps_methods(kind, EncryptedSerializer) and has_known_format(serializer.serde)
    return _keeps_methods(kind, JsonPlusSerializer)


def is_encrypting(serializer: SerializerProtocol) -> TypeGuard[EncryptedSerializer]:
    """Whether a serializer is LangGraph's encrypting one: what `isinstance` says, which takes a µs for a protocol."""
    kind = type(serializer)
    return kind is not JsonPlusSerializer and _derives(kind, EncryptedSerializer)


@lru_cache
def _derives(kind: type, base: type) -> bool:
    return issubclass(kind, base)


@lru_cache
def _keeps_methods(kind: type, base: type) -> bool:
    names = ("dumps_typed", "loads_typed")
    return issubclass(kind, base) and all(getattr(kind, name) is getattr(base, name) for name in names)


def _unpacked(data: bytes) -> Any:
    return ormsgpack.unpackb(data, ext_hook=Opaque, option=ormsgpack.OPT_NON_STR_KEYS)


def _extension(value: Any) -> ormsgpack.Ext:
    if isinstance(value, Opaque):
        return ormsgpack.Ext(value.code, value.data)
    raise TypeError(f"a {type(value).__name__} is no plain value")


_COMPARING = JsonPlusSerializer(pickle_fallback=True)

_PLAIN = (
    ormsgpack.OPT_NON_STR_KEYS
    | ormsgpack.OPT_PASSTHROUGH_DATACLASS
    | ormsgpack.OPT_PASSTHROUGH_DATETIME
    | ormsgpack.OPT_PASSTHROUGH_ENUM
    | ormsgpack.OPT_PASSTHROUGH_SUBCLASS
    | ormsgpack.OPT_PASSTHROUGH_UUID
    | ormsgpack.OPT_REPLACE_SURROGATES
)
