"""Where the parts of a MessagePack value begin and end, without making objects of them. Pure.

The format: https://github.com/msgpack/msgpack/blob/master/spec.md
"""

from __future__ import annotations

from collections.abc import Iterator

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


def map_entries(data: bytes, at: int) -> Iterator[tuple[str, slice]]:
    """The keys of the map that begins at `at`, each with the place of its value.

    Raises:
        ValueError: there is no map with texts as keys, or it ends too early.
    """
    count, at = _map_head(data, at)
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


def _map_head(data: bytes, at: int) -> tuple[int, int]:
    """How many entries the map at `at` has, and where the first one begins."""
    first = data[at] if at < len(data) else 0
    if 0x80 <= first <= 0x8F:
        return first & 0x0F, at + 1
    width = _MAP.get(first, len(data))
    if at + 1 + width > len(data):
        raise ValueError("no map where one should be")
    return _length(data, at, width), at + 1 + width


def _text(data: bytes, at: int, end: int) -> str:
    first = data[at]
    if 0xA0 <= first <= 0xBF:
        return data[at + 1 : end].decode()
    if width := _STR.get(first):
        return data[at + 1 + width : end].decode()
    raise ValueError("a key that is no text")
