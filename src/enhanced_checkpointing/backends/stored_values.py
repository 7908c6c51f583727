"""Values as they are stored, told apart and taken out of a checkpoint without making objects of them. Pure.

A class that cannot be imported here would come back as plain data, and be stored as that from then on. Bytes that are
not looked into stay what they are, and nothing of the application is run. MessagePack's format:
https://github.com/msgpack/msgpack/blob/master/spec.md
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, cast

import ormsgpack
from langgraph.checkpoint.base import CheckpointMetadata
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import EXT_DELTA_SNAPSHOT
from langgraph.checkpoint.serde.types import TASKS, _DeltaSnapshot

from enhanced_checkpointing.errors import CheckpointerError
from enhanced_checkpointing.identifiers import INTEGERS
from enhanced_checkpointing.serialization import (
    BYTEARRAY,
    BYTES,
    JSON,
    MSGPACK,
    NULL,
    Opaque,
    Serialized,
    SharingSerializer,
    argument_of,
    has_known_format,
    load_plain,
    unsealed,
)

_SIZES = {0xC0: 1, 0xC2: 1, 0xC3: 1}  # nil, false, true
_SIZES |= {0xCA: 5, 0xCB: 9, 0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9, 0xD0: 2, 0xD1: 3, 0xD2: 5, 0xD3: 9}  # numbers
_SIZES |= {0xD4: 3, 0xD5: 4, 0xD6: 6, 0xD7: 10, 0xD8: 18}  # extensions of 1, 2, 4, 8 and 16 bytes
"""Bytes of the values that are always as long."""

_BIN = {0xC4: 1, 0xC5: 2, 0xC6: 4}
_EXT = {0xC7: 1, 0xC8: 2, 0xC9: 4}
_STR = {0xD9: 1, 0xDA: 2, 0xDB: 4}
_ARRAY = {0xDC: 2, 0xDD: 4}
_MAP = {0xDE: 2, 0xDF: 4}
"""Bytes in which the length stands, behind the first one."""

_FIXED_EXT = range(0xD4, 0xD9)
_SIMPLE = frozenset((*range(0xC0, 0xC4), *range(0xCA, 0xD4), *_STR))


def map_entries(data: bytes) -> Iterator[tuple[str, slice]]:
    """The keys of a map, each with the place of its value.

    Raises:
        ValueError: there is no map with texts as keys, or it ends too early.
    """
    count, at = _map_head(data)
    for _ in range(count):
        start, at = at, end_of(data, at)
        key, value_at = _text(data, start, at), at
        at = end_of(data, at)
        yield key, slice(value_at, at)


def array_items(data: bytes) -> Iterator[slice]:
    """The places of the items of an array.

    Raises:
        ValueError: there is no array, or it ends too early.
    """
    first = data[0] if data else 0
    short = 0x90 <= first <= 0x9F
    width = 0 if short else _ARRAY.get(first, len(data))
    if 1 + width > len(data):
        raise ValueError("no array where one should be")
    at = 1 + width
    for _ in range(first & 0x0F if short else _length(data, 0, width)):
        start, at = at, end_of(data, at)
        yield slice(start, at)


def array_head(count: int) -> bytes:
    """What stands before the items of an array of so many."""
    if count <= 0x0F:
        return bytes([0x90 | count])
    return b"\xdc" + count.to_bytes(2, "big") if count <= 0xFFFF else b"\xdd" + count.to_bytes(4, "big")


def end_of(data: bytes, at: int) -> int:
    """Where the value that begins at `at` ends.

    Raises:
        ValueError: it ends too early, or there is no such value.
    """
    left = 1
    try:
        while left:
            left -= 1
            first = data[at]
            if 0xA0 <= first <= 0xBF:  # short texts, the most frequent, come first
                at += first - 0x9F
            elif first == 0xD9:
                at += 2 + data[at + 1]
            elif first <= 0x7F or first >= 0xE0:
                at += 1
            elif first <= 0x9F:
                left += (first & 0x0F) * (2 if first <= 0x8F else 1)
                at += 1
            elif size := _SIZES.get(first):
                at += size
            elif width := _BIN.get(first) or _STR.get(first):
                at += 1 + width + _length(data, at, width)
            elif width := _EXT.get(first):
                at += 2 + width + _length(data, at, width)
            else:
                width = _ARRAY.get(first) or _MAP[first]
                left += _length(data, at, width) * (2 if first in _MAP else 1)
                at += 1 + width
    except (IndexError, KeyError):
        raise ValueError("no MessagePack, or not all of it") from None
    if at > len(data):
        raise ValueError("MessagePack that ends too early")
    return at


def binary(value: bytes) -> bytes | None:
    """The bytes that a value consists of; None if it is of another type."""
    width = _BIN.get(value[0])
    return None if width is None else value[1 + width :]


def extension(value: bytes) -> int | None:
    """The code of a value that is an extension; None if it is of another type."""
    if value[0] in _FIXED_EXT:
        return value[1]
    width = _EXT.get(value[0])
    return None if width is None else value[1 + width]


def is_simple(value: bytes) -> bool:
    """Whether a value is nothing, a truth value, a number or a text."""
    first = value[0]
    return first <= 0x7F or 0xA0 <= first <= 0xBF or first >= 0xE0 or first in _SIMPLE


def _length(data: bytes, at: int, width: int) -> int:
    return int.from_bytes(data[at + 1 : at + 1 + width], "big")


def _map_head(data: bytes) -> tuple[int, int]:
    """How many entries a map has, and where the first one begins."""
    first = data[0] if data else 0
    if 0x80 <= first <= 0x8F:
        return first & 0x0F, 1
    width = _MAP.get(first, len(data))
    if 1 + width > len(data):
        raise ValueError("no map where one should be")
    return _length(data, 0, width), 1 + width


def _text(data: bytes, at: int, end: int) -> str:
    first = data[at]
    if 0xA0 <= first <= 0xBF:
        return data[at + 1 : end].decode()
    if width := _STR.get(first):
        return data[at + 1 + width : end].decode()
    raise ValueError("a key that is no text")


_SPACE = re.compile(r"[ \t\n\r]*")
_JSON = json.JSONDecoder(parse_int=len, parse_float=len, object_pairs_hook=lambda _: None)
"""Finds where a value ends; what it is made into is of no use."""


def json_entries(data: bytes) -> Iterator[tuple[str, bytes]]:
    """The keys of an object, each with the bytes of its value.

    Raises:
        ValueError: there is no object, or it ends too early.
    """
    return _json_members(data.decode(), "{", "}")


def json_items(data: bytes) -> Iterator[bytes]:
    """The bytes of the items of an array.

    Raises:
        ValueError: there is no array, or it ends too early.
    """
    return (item for _, item in _json_members(data.decode(), "[", "]"))


def _json_members(text: str, opening: str, closing: str) -> Iterator[tuple[str, bytes]]:
    at = _after_space(text, 0)
    if text[at : at + 1] != opening:
        raise ValueError("no JSON object or array where one should be")
    at = _after_space(text, at + 1)
    if text[at : at + 1] == closing:
        return
    try:
        while True:
            key = ""
            if opening == "{":
                key, at = _JSON.raw_decode(text, at)
                at = _after_space(text, at)
                if type(key) is not str or text[at : at + 1] != ":":
                    raise ValueError("a key that is no text")
                at = _after_space(text, at + 1)
            start, at = at, _JSON.raw_decode(text, at)[1]
            yield key, text[start:at].encode()
            at = _after_space(text, at)
            if text[at : at + 1] == closing:
                return
            if text[at : at + 1] != ",":
                raise ValueError("JSON that ends too early")
            at = _after_space(text, at + 1)
    except RecursionError:
        raise ValueError("JSON that is nested too deep") from None


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None  # it matches nothing at all, too
    return found.end()


LARGEST_EXACT = 1e16
"""Python writes greater floats without a decimal point, and read back they are integers."""
VALUES = "channel_values"
NOTHING = b"\xc0"


@dataclass(frozen=True, slots=True)
class Parts:
    """A checkpoint without its values, the values, and which of them are snapshots of delta channels."""

    skeleton: dict[str, Any]
    values: dict[str, Any]
    snapshots: frozenset[str]


def take_apart(stored: Serialized, serializer: SharingSerializer) -> Parts:
    """Take the values out of a checkpoint that is stored as one piece: each keeps the bytes that it has there.

    A serializer with a format of its own is asked itself, and must make the same bytes of what it has read.

    Raises:
        CheckpointerError: it cannot be taken apart as it is: it is pickled, or this serializer did not store it.
        ValueError: it is no checkpoint.
    """
    if not has_known_format(serializer.inner):
        return _take_apart_own(stored, serializer)
    plain = unsealed(stored, serializer)
    if plain.tag not in (MSGPACK, JSON):
        raise CheckpointerError(
            f"The checkpoint is stored with the tag {stored.tag!r}, which cannot be taken apart without making objects "
            "of it, or is not of the serializer in use. Nothing of it was copied."
        )
    entries = _entries(plain)
    values = entries.pop(VALUES, NOTHING)
    kept = {} if values in (NOTHING, b"null") else _entries(Serialized(plain.tag, values))
    skeleton = {key: load_plain(Serialized(plain.tag, part), serializer) for key, part in entries.items()}
    if _sends_late(skeleton):
        kept[TASKS] = entries["pending_sends"]
        del skeleton["pending_sends"]
        skeleton["channel_versions"][TASKS] = max(skeleton["channel_versions"].values())
    return Parts(
        skeleton,
        {channel: _kept(Serialized(plain.tag, part), stored, serializer) for channel, part in kept.items()},
        frozenset(
            name for name, part in kept.items() if plain.tag == MSGPACK and extension(part) == EXT_DELTA_SNAPSHOT
        ),
    )


def _entries(plain: Serialized) -> dict[str, bytes]:
    """The bytes of the value of each key of a document."""
    if plain.tag == JSON:
        return dict(json_entries(plain.data))
    return {key: plain.data[place] for key, place in map_entries(plain.data)}


def _sends_late(skeleton: Mapping[str, Any]) -> bool:
    """Whether a checkpoint of before version 4 of the format sends something to tasks. LangGraph makes a channel of it
    when it reads the checkpoint; no other database keeps it beside the channels, so here it becomes one for good."""
    is_old = isinstance(skeleton.get("v"), int) and skeleton["v"] < 4
    return is_old and bool(skeleton.get("pending_sends")) and bool(skeleton.get("channel_versions"))


def is_snapshot(value: Any, serializer: SharingSerializer) -> bool:
    """Whether a value is what LangGraph stores now and then of a whole delta channel."""
    if type(value) is not Serialized:
        return False
    return _is_snapshot(unsealed(value, serializer))


def _is_snapshot(plain: Serialized) -> bool:
    return plain.tag == MSGPACK and extension(plain.data) == EXT_DELTA_SNAPSHOT


def inline(value: Serialized) -> Any:
    """The value itself, if it is one that LangGraph's PostgreSQL saver keeps in the checkpoint's JSON and that comes
    back from there as it was; else its bytes, as every saver can keep them."""
    if value.tag == NULL:
        return None
    try:
        if value.tag == JSON and value.data[:1] not in (b"[", b"{"):
            live = json.loads(value.data)
        elif value.tag == MSGPACK and is_simple(value.data):
            live = ormsgpack.unpackb(value.data)
        else:
            return value
    except ValueError:
        return value  # a text that is not UTF-8: reading it says so
    return live if survives_json(live) else value


def from_json(value: Any, serializer: SharingSerializer) -> Any:
    """A value that PostgreSQL keeps in the checkpoint's JSON, such that every saver can take it.

    An integer that MessagePack cannot hold was a float before PostgreSQL wrote it without a point.
    """
    if isinstance(value, int) and value not in INTEGERS:
        try:
            number = float(value)
        except OverflowError:
            return value
        was_float = int(Decimal(repr(number))) == value  # Python's shortest text for it, written out
        return Serialized(*serializer.dumps_typed(number)) if was_float else value
    return value


def survives_json(value: Any) -> bool:
    """Whether a simple value comes back from a JSON column of PostgreSQL as it was."""
    if isinstance(value, float):
        return abs(value) < LARGEST_EXACT and (value != 0 or math.copysign(1, value) > 0)
    return not isinstance(value, str) or ("\0" not in value and is_unicode(value))


def settled(frozen: Any, serializer: SharingSerializer) -> Any:
    """A frozen value; as bytes if every saver can keep it only so."""
    if type(frozen) is Serialized or survives_json(frozen):
        return frozen
    return Serialized(*serializer.dumps_typed(frozen))


def comparable(value: Any, serializer: SharingSerializer) -> bytes:
    """The same bytes for the same value, however it is kept: inline or not, sealed or not."""
    value = settled(value, serializer)
    if type(value) is not Serialized:
        return b"json:" + json.dumps(value).encode()
    plain = unsealed(value, serializer)
    short = inline(plain)
    if type(short) is not Serialized:
        return b"json:" + json.dumps(short).encode()
    # In a checkpoint of SQLite the two are the same.
    return (BYTES if plain.tag == BYTEARRAY else plain.tag).encode() + b":" + plain.data


def items_of(value: Serialized, serializer: SharingSerializer) -> list[Serialized] | None:
    """The items of a list, each as it would be kept by itself, not sealed; None where there is none to be seen."""
    plain = unsealed(value, serializer)
    try:
        if plain.tag == MSGPACK:
            return [_alone(Serialized(MSGPACK, plain.data[place])) for place in array_items(plain.data)]
        if plain.tag == JSON:
            return [_alone(Serialized(JSON, item)) for item in json_items(plain.data)]
    except ValueError:
        return None
    return None


def list_of(items: Sequence[Serialized], serializer: SharingSerializer) -> Serialized:
    """A list of stored values, with the bytes that they have: what `items_of` takes apart; sealed if they are.

    Raises:
        CheckpointerError: they are of several formats, or of one that is not read without making objects.
    """
    plain = [unsealed(item, serializer) for item in items]
    tags = {item.tag for item in plain}
    sealed = next((item.tag for item in items if "+" in item.tag), "")
    if tags == {MSGPACK}:
        content = array_head(len(plain)) + b"".join(item.data for item in plain)
    elif tags == {JSON}:
        content = b"[" + b", ".join(item.data for item in plain) + b"]"
    else:
        raise CheckpointerError(f"What is sent to tasks is stored with the tags {sorted(tags)}: it cannot be joined.")
    return seal_like(sealed, Serialized(tags.pop(), content), serializer)


def _kept(part: Serialized, checkpoint: Serialized, serializer: SharingSerializer) -> Any:
    """A part of a checkpoint as it would be stored by itself; sealed if the checkpoint was."""
    alone = _alone(part)
    return seal_like(checkpoint.tag, alone, serializer) if "+" in checkpoint.tag else inline(alone)


def seal_like(like: str, plain: Serialized, serializer: SharingSerializer) -> Serialized:
    """A value as the encrypting serializer seals it, if one with the tag `like` is sealed."""
    if "+" not in like:
        return plain
    assert isinstance(serializer.inner, EncryptedSerializer)  # which opened the other one
    cipher, data = serializer.inner.cipher.encrypt(plain.data)
    return Serialized(f"{plain.tag}+{cipher}", data)


def _alone(part: Serialized) -> Serialized:
    if part.tag == JSON:
        return part
    content = binary(part.data)
    if content is not None:
        return Serialized(BYTES, content)
    return Serialized(NULL, b"") if part.data == NOTHING else part


def _take_apart_own(stored: Serialized, serializer: SharingSerializer) -> Parts:
    checkpoint = serializer.loads_typed((stored.tag, stored.data))
    if serializer.dumps_typed(checkpoint) != (stored.tag, stored.data):
        raise CheckpointerError(
            f"The serializer {type(serializer.inner).__name__} does not make the same bytes again of a checkpoint that "
            f"it stored with the tag {stored.tag!r}, so a copy might be another one. Nothing of it was copied."
        )
    live = checkpoint.get(VALUES) or {}
    return Parts(
        {key: part for key, part in checkpoint.items() if key != VALUES},
        {channel: settled(serializer.freeze(value), serializer) for channel, value in live.items()},
        frozenset(channel for channel, value in live.items() if isinstance(value, _DeltaSnapshot)),
    )


def is_unicode(text: str) -> bool:
    """Whether a text has no half characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


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
